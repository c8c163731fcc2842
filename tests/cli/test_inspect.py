"""`peft-reft inspect`: kinds, layers, positions, parameters, size, base and producer, in figures and on a screen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peft_reft.integrations.cli import main
from peft_reft.integrations.cli.inspect import spans

from .conftest import Command


def test_it_says_what_is_edited_and_where(folders: Path, command: Command) -> None:
    status, shown = command("inspect", folders / "reft")
    (member,) = shown["members"]
    (edit,) = member["edits"]
    assert (status, shown["ok"], shown["bundle"]) == (0, True, False)
    assert edit["layers"] == {"model.layers": [0, 2]}
    assert (edit["intervention"], edit["rank"], edit["positions"]) == ("loreft", 2, "f2+l2")
    # per layer: rotation 2 × 32, projection 2 × 32, bias 2; one intervention for both terms
    assert edit["parameters"] == member["parameters"] == shown["parameters"] == 2 * (64 + 64 + 2)
    names = ("adapter_config.json", "adapter_model.safetensors", "reft_manifest.json")
    assert shown["bytes"] == sum((folders / "reft" / name).stat().st_size for name in names)
    assert member["base"]["hidden_size"] == 32
    assert member["producer"]["name"] == "peft-reft"


def test_it_lists_the_members_of_a_bundle(folders: Path, command: Command) -> None:
    _, shown = command("inspect", folders / "both")
    assert shown["bundle"]
    assert [(member["name"], member["kind"]) for member in shown["members"]] == [("default", "lora"), ("edit", "reft")]
    lora, edit = shown["members"]
    assert lora["weights"] == {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert edit["edits"][0]["layers"] == {"model.layers": [0, 1, 2]}
    assert shown["parameters"] == lora["parameters"] + edit["parameters"]


def test_the_screen_holds_the_same(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folders / "both")]) == 0
    screen = capsys.readouterr().out
    for part in (
        "a bundle of 2 adapters",
        "default (lora",
        "edit (reft",
        "loreft",
        "f2+l2, tied",
        "0-2",
        "hidden_size",
    ):
        assert part in screen, part
    assert len(screen.splitlines()) <= 24


def test_a_folder_that_was_changed_is_refused_not_shown(folders: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(folders / "reft", tmp_path / "reft")
    with (tmp_path / "reft" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    status, shown = command("inspect", tmp_path / "reft")
    assert (status, shown["ok"], shown["error"]["code"]) == (1, False, "integrity.file")


def test_runs_of_layers_are_drawn_together() -> None:
    assert spans([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
    assert spans([]) == ""
