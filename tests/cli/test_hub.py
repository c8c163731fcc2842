"""`push`, `pull` and the commands that take a repository, against a Hub on this machine."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tools.loopback_hub import LoopbackHub

from .conftest import Command

Run = Callable[..., list[tuple[int, dict[str, Any]]]]


@pytest.fixture
def run(command: Command) -> Run:
    """Runs command lines; gives the status and the object of each."""
    return lambda *lines: [command(*shlex.split(line)) for line in lines]


def test_what_is_pushed_is_pulled_and_inspected(
    hub: LoopbackHub, run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, new = folders / "both", tmp_path / "new"
    pushed, pulled, same, shown, valid = run(
        f"push {both} me/both --message First --private",
        f"pull me/both {new}",
        f"diff {both} me/both",
        "inspect me/both",
        "validate me/both --revision main",
    )
    assert pushed[0] == 0
    assert "/commit/" in pushed[1]["commit"]
    assert hub.storage.repos["me/both"].private
    assert pulled[0] == valid[0] == 0
    names = {path.relative_to(both) for path in both.rglob("*") if path.is_file() and path.name != "README.md"}
    assert {path.relative_to(new) for path in new.rglob("*") if path.is_file()} - {Path("README.md")} == names
    assert "pip install peft-reft" in (new / "README.md").read_text("utf-8")
    assert (same[0], same[1]["different"]) == (0, False)
    assert [member["name"] for member in shown[1]["members"]] == ["default", "edit"]


def test_what_the_hub_refuses_is_told_apart(
    hub: LoopbackHub, run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pushed,) = run(f"push {folders / 'reft'} me/secret --private")
    assert pushed[0] == 0
    missing, revision, lora = run(
        f"pull me/nowhere {tmp_path / 'x'}",
        f"pull me/secret {tmp_path / 'x'} --revision nope",
        f"push {folders / 'lora'} me/lora",
    )
    assert (missing[0], missing[1]["error"]["code"]) == (1, "hub.missing")
    assert (revision[0], revision[1]["error"]["code"]) == (1, "hub.revision")
    assert (lora[0], lora[1]["error"]["code"]) == (1, "push.members")
    monkeypatch.setenv("HF_TOKEN", "")
    (private,) = run(f"pull me/secret {tmp_path / 'x'}")
    assert (private[0], private[1]["error"]["code"]) == (1, "hub.missing")
    assert not (tmp_path / "x").exists()


def test_offline_what_was_fetched_is_there_and_the_rest_is_refused(
    hub: LoopbackHub, run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"push {folders / 'reft'} me/kept", "inspect me/kept")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept, other, push = run(
        "inspect me/kept",
        f"pull me/other {tmp_path / 'x'}",
        f"push {folders / 'reft'} me/kept",
    )
    assert kept[0] == 0
    assert (other[0], other[1]["error"]["code"]) == (1, "hub.offline")
    assert (push[0], push[1]["error"]["code"]) == (1, "hub.offline")


def test_a_reft_is_added_beside_a_lora(hub: LoopbackHub, run: Run, folders: Path) -> None:
    pushed, refused, added, both, shown = run(
        f"push {folders / 'both'} me/added",
        f"push {folders / 'reft'} me/added",
        f"push {folders / 'reft'} me/added --add poems",
        f"push {folders / 'reft'} me/added --add poems --replace",
        "inspect me/added",
    )
    assert pushed[0] == added[0] == 0
    assert (refused[0], refused[1]["error"]["code"]) == (1, "hub.occupied")
    assert (both[0], both[1]["error"]["code"]) == (2, "usage")
    kinds = {"default": "lora", "edit": "reft", "poems": "reft"}
    assert {member["name"]: member["kind"] for member in shown[1]["members"]} == kinds


def test_a_repository_without_a_card_starts_with_the_folders(
    hub: LoopbackHub, run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reft"
    shutil.copytree(folders / "reft", folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nTrained on poems.\n", "utf-8")
    first, pulled, again, last = run(
        f"push {folder} me/carded",
        f"pull me/carded {tmp_path / 'first'}",
        f"push {folders / 'reft'} me/carded",
        f"pull me/carded {tmp_path / 'last'}",
    )
    assert first[0] == pulled[0] == again[0] == last[0] == 0
    cards = [(tmp_path / name / "README.md").read_text("utf-8") for name in ("first", "last")]
    assert "Trained on poems." in cards[0]
    assert "license: mit" in cards[0]
    assert cards[0] == cards[1]
