"""`pull` and `list_adapters`: one revision, checked before it lands, and refusals that say which kind they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

import peft_reft
from peft_reft import list_adapters, pull
from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import HubError, IntegrityError, ManifestError, ReftError
from peft_reft.hub_format.journal import COMMIT_NAME
from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.faults import call_first, flipped_bit
from tools.loopback_hub.objects import StoredFile

from .folders import contents, upload

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
ALONE = {"adapter_config.json", "adapter_model.safetensors", "reft_manifest.json"}


def test_pull_brings_the_bytes_of_an_adapter_and_its_card(hub: LoopbackHub, alone: Path, tmp_path: Path) -> None:
    upload(hub, alone)
    assert pull("me/x", tmp_path / "here") == tmp_path / "here"
    assert contents(tmp_path / "here") == contents(alone)
    assert contents(alone).keys() == {*ALONE, "README.md"}


def test_pull_brings_a_bundle_and_nothing_else_of_the_repository(
    hub: LoopbackHub, bundle: Path, tmp_path: Path
) -> None:
    upload(hub, bundle)
    hub.storage.repos["me/x"].commit({"secret/notes.txt": StoredFile.regular(b"mine")}, title="Notes")
    pull("me/x", tmp_path / "here")
    assert contents(tmp_path / "here") == contents(bundle)


def test_pull_replaces_what_the_folder_held_and_leaves_other_files(
    hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(bundle, here)
    (here / "notes.txt").write_text("mine")
    upload(hub, alone)
    pull("me/x", here)
    assert contents(here) == {**contents(alone), "notes.txt": b"mine"}
    upload(hub, bundle, "me/both")
    pull("me/both", here)
    assert contents(here) == {**contents(bundle), "notes.txt": b"mine"}


def test_pull_takes_the_revision_asked_for(hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path) -> None:
    api = upload(hub, alone)
    api.create_tag("me/x", tag="v1")
    api.delete_file("adapter_model.safetensors", "me/x")
    pull("me/x", tmp_path / "here", revision="v1")
    assert contents(tmp_path / "here") == contents(alone)
    with pytest.raises(ManifestError, match=r"adapter_model\.safetensors"):
        pull("me/x", tmp_path / "there")


def test_a_push_during_a_pull_does_not_mix_two_commits(hub: LoopbackHub, alone: Path, tmp_path: Path) -> None:
    upload(hub, alone)
    theirs = {name: StoredFile.regular(b"theirs") for name in ("adapter_config.json", "reft_manifest.json")}
    push = call_first(lambda: hub.storage.repos["me/x"].commit(theirs, title="Theirs"))
    hub.faults.add(r"(HEAD|GET) /me/x/resolve/.*adapter_model", push, times=1)
    pull("me/x", tmp_path / "here")
    assert hub.faults.unused == 0
    assert contents(tmp_path / "here") == contents(alone)


def test_flipped_bytes_are_refused_and_the_folder_stays(
    hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(bundle, here)
    upload(hub, alone)
    hub.faults.add(r"GET /cdn/.*adapter_model.safetensors", flipped_bit(-2), times=5)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        pull("me/x", here)
    hub.faults.clear()
    assert contents(here) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("held", [False, True])
def test_every_file_is_on_the_disk_before_any_takes_its_place_and_the_index_is_last(
    held: bool, hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    if held:
        shutil.copytree(alone, here)
    upload(hub, bundle)
    synced: set[int] = set()
    placed: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def noting_rename(source: Path, target: Path) -> None:
        if Path(target) in (here, here / COMMIT_NAME):
            inside = [Path(source), *Path(source).rglob("*")]
            assert {path.stat().st_ino for path in inside} <= synced, target
            placed.append(Path(target).name)
        rename(source, target)

    def noting_replace(source: Path, target: Path) -> None:
        if Path(target).is_relative_to(here):
            placed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    monkeypatch.setattr(os, "replace", noting_replace)
    pull("me/x", here)
    assert contents(here) == contents(bundle)
    if not held:
        assert placed == ["here"]
    else:
        assert placed[0] == COMMIT_NAME
        assert len(placed) == 1 + len(contents(bundle))
        assert placed[-2:] == ["reft_manifest.json", "reft_index.json"]


def test_nothing_is_pulled_through_a_link(hub: LoopbackHub, alone: Path, tmp_path: Path) -> None:
    upload(hub, alone)
    here, victim = tmp_path / "here", tmp_path / "victim.txt"
    here.mkdir()
    victim.write_text("mine")
    (here / "adapter_config.json").symlink_to(victim)
    with pytest.raises(ManifestError, match="link"):
        pull("me/x", here)
    assert victim.read_text() == "mine"
    (tmp_path / "linked").symlink_to(here)
    with pytest.raises(ManifestError, match="not a folder"):
        pull("me/x", tmp_path / "linked")


def test_list_adapters_reads_no_weights(hub: LoopbackHub, bundle: Path) -> None:
    upload(hub, bundle)
    hub.requests.clear()
    expected = [Member("default", "lora", "."), Member("edit", "reft", "reft/edit")]
    assert list_adapters("me/x") == expected == list_adapters(bundle) == list_adapters(str(bundle))
    assert not [request for request in hub.requests if "safetensors" in request.line]


def test_list_adapters_of_a_folder_without_an_index_goes_by_its_configs(
    alone: Path, bundle: Path, tmp_path: Path
) -> None:
    assert list_adapters(alone) == [Member("default", "reft", ".")]
    shutil.copytree(bundle, tmp_path / "stock", ignore=shutil.ignore_patterns("reft*"))
    shutil.copytree(alone, tmp_path / "stock" / "a")
    assert list_adapters(tmp_path / "stock") == [Member("default", "lora", "."), Member("a", "reft", "a")]


def test_list_adapters_refuses_a_bundle_without_its_index(bundle: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn, ignore=shutil.ignore_patterns("reft_index.json"))
    with pytest.raises(ManifestError, match=r"reft_index\.json") as caught:
        list_adapters(torn)
    assert caught.value.code == "bundle.index"


@pytest.mark.parametrize("verb", [list_adapters, lambda source: pull(source, "never-made")])
def test_an_index_that_leaves_the_folder_is_refused(
    verb: Callable[[str], object], hub: LoopbackHub, bundle: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(bundle, hostile)
    index = json.loads((hostile / "reft_index.json").read_text())
    index["members"][1]["folder"] = "reft/../../edit"
    (hostile / "reft_index.json").write_text(json.dumps(index))
    upload(hub, hostile)
    with pytest.raises(ReftError, match="reft_index"):
        verb("me/x")
    assert not Path("never-made").exists()


def test_a_folder_without_an_adapter_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        list_adapters(tmp_path)
    assert caught.value.code == "adapter.missing"


@pytest.mark.parametrize("verb", [peft_reft.list_adapters, lambda source, **options: pull(source, "never", **options)])
def test_gated_missing_private_and_no_such_revision_are_told_apart(
    verb: Callable[..., object], hub: LoopbackHub, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, alone)

    def code(source: str, **options: object) -> str:
        with pytest.raises(HubError) as caught:
            verb(source, **options)
        return caught.value.code

    assert code("me/nothing") == "hub.missing"
    assert code("me/x", revision="nope") == "hub.revision"
    assert code("not a name") == "hub.name"
    hub.storage.repos["me/x"].gated = "manual"
    assert code("me/x", token=hub.stranger_token) == "hub.gated"
    hub.storage.repos["me/x"].private = True
    assert code("me/x", token=hub.stranger_token) == "hub.missing"
    assert code("me/x", token=False) == "hub.missing"
    assert not Path("never").exists()


def test_offline_the_cache_serves_and_what_is_not_there_is_named(
    hub: LoopbackHub, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, alone)
    pull("me/x", tmp_path / "online")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull("me/x", tmp_path / "offline")
    assert contents(tmp_path / "offline") == contents(alone)
    with pytest.raises(HubError) as caught:
        pull("me/other", tmp_path / "never")
    assert caught.value.code == "hub.offline"
