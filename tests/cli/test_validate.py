"""`peft-reft validate`: status 0 for what loads, 1 with code, file, value, rule and fix for what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_reft.hub_format.bundle import INDEX_NAME as INDEX
from peft_reft.hub_format.bundle import Member, write_index
from peft_reft.hub_format.writer import write_adapter_files
from peft_reft.integrations.cli import main

from .conftest import Command

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "reft_manifest.json"


@pytest.mark.parametrize(("folder", "members"), [("reft", 1), ("lora", 1), ("both", 2)])
def test_what_models_write_is_valid(folders: Path, command: Command, folder: str, members: int) -> None:
    status, said = command("validate", folders / folder)
    assert (status, said["ok"], said["problems"], len(said["members"])) == (0, True, [], members)


def change_member(root: Path, name: str, old: bytes = b'"r": 2', new: bytes = b'"r": 3') -> None:
    path = root / name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def test_each_refused_member_is_named_with_its_rule(folders: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(folders / "both", tmp_path / "both")
    change_member(tmp_path / "both" / "reft" / "edit", CONFIG)
    status, said = command("validate", tmp_path / "both")
    (problem,) = said["problems"]
    assert (status, said["ok"]) == (1, False)
    assert (problem["member"], problem["code"], problem["file"]) == ("edit", "integrity.file", CONFIG)
    assert problem["fix"]


def test_a_member_other_than_the_index_says_is_refused(folders: Path, tmp_path: Path, command: Command) -> None:
    """The LoRA is well in itself, and not the one that was saved with the bundle."""
    shutil.copytree(folders / "both", tmp_path / "both")
    change_member(tmp_path / "both", CONFIG, b'"lora_dropout": 0.', b'"lora_dropout": 0.0')
    status, said = command("validate", tmp_path / "both")
    (problem,) = said["problems"]
    assert (status, problem["member"], problem["code"], problem["file"]) == (1, None, "bundle.files", INDEX)


def test_an_index_that_is_none_is_a_problem_too(folders: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(folders / "both", tmp_path / "both")
    (tmp_path / "both" / INDEX).write_text('{"spec_version": "1.0"}')
    status, said = command("validate", tmp_path / "both")
    (problem,) = said["problems"]
    assert (status, said["members"], problem["code"], problem["file"]) == (1, [], "manifest", INDEX)


def test_a_rotation_without_full_rank_is_refused(folders: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(folders / "reft", tmp_path / "reft")
    changed(tmp_path / "reft", lambda held: held.update({n: t * 0 for n, t in held.items() if n.endswith("rotation")}))
    status, said = command("validate", tmp_path / "reft")
    assert (status, said["problems"][0]["code"], said["problems"][0]["file"]) == (1, "load.rank", WEIGHTS)


def test_a_hostile_lora_of_a_bundle_is_refused(folders: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(folders / "both", tmp_path / "both")
    path = tmp_path / "both" / WEIGHTS
    held = load_file(path)
    next(iter(held.values())).view(-1)[0] = float("nan")
    save_file(held, path, metadata={"format": "pt"})
    write_index(tmp_path / "both", [Member.at("default", "lora"), Member.at("edit", "reft")])
    status, said = command("validate", tmp_path / "both")
    assert (status, said["problems"][0]["code"], said["problems"][0]["member"]) == (1, "tensors.finite", "default")


def changed(target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change tensors and describe the folder anew, as someone would who saved it so."""
    held = load_file(target / WEIGHTS)
    change(held)
    save_file(held, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((target / CONFIG).read_text())
    del config["reft"]["tensors"]
    base = json.loads((target / MANIFEST).read_text())["base_model"]
    write_adapter_files(target, config, base_model=base, producer={"name": "someone", "version": "1"})


def test_a_missing_manifest_or_weights_is_refused(folders: Path, tmp_path: Path, command: Command) -> None:
    for name, code in ((MANIFEST, "manifest.missing"), (WEIGHTS, "manifest")):
        shutil.copytree(folders / "reft", tmp_path / name)
        (tmp_path / name / name).unlink()
        status, said = command("validate", tmp_path / name)
        assert (status, said["problems"][0]["code"]) == (1, code)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(folders: Path, tmp_path: Path, command: Command, value: float) -> None:
    """The digests are right: someone saved it so."""
    target = tmp_path / "reft"
    shutil.copytree(folders / "reft", target)

    def broken(held: dict[str, torch.Tensor]) -> None:
        next(iter(held.values())).view(-1)[0] = value

    changed(target, broken)
    status, said = command("validate", target)
    assert (status, said["problems"][0]["code"]) == (1, "tensors.finite")


def test_for_people_it_prints_every_field_on_a_line(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders / "reft", tmp_path / "reft")
    (tmp_path / "reft" / MANIFEST).unlink()
    assert main(["validate", str(tmp_path / "reft")]) == 1
    out = capsys.readouterr().out
    for part in (
        "refused",
        "  code: manifest.missing",
        "  file: reft_manifest.json",
        "  rule: ReFT weights",
        "  fix: save",
    ):
        assert part in out
