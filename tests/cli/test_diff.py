"""`peft-reft diff`: equal is 0; config fields and tensors that differ are listed with what they are, and 1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from contract.tiny import base_model
from peft_reft import ReftConfig
from peft_reft.integrations.cli import main

from .conftest import REFT, Command


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b`: two values of `b` moved, by 0.5 and −0.25; `c`: other fields and layers."""
    root = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    model = get_peft_model(base_model("llama"), ReftConfig(**REFT))
    model.save_pretrained(root / "a")
    biases = [parameter for name, parameter in model.named_parameters() if "reft_" in name and "bias" in name]
    with torch.no_grad():
        biases[0].zero_()
        model.save_pretrained(root / "a")
        biases[0][1] = -0.5
        biases[1][0] += 0.25
    model.save_pretrained(root / "b")
    other = ReftConfig(**{**REFT, "positions": "l1"}, layers_to_transform=[0], act_fn="relu")
    get_peft_model(base_model("llama"), other).save_pretrained(root / "c")
    return root


def test_an_adapter_equals_itself(pair: Path, command: Command) -> None:
    status, said = command("diff", pair / "a", pair / "a")
    assert (status, said["different"], said["members"]) == (
        0,
        False,
        [{"member": "default", "config": [], "tensors": []}],
    )


def test_tensors_are_told_by_their_largest_difference(pair: Path, command: Command) -> None:
    status, said = command("diff", pair / "a", pair / "b")
    (member,) = said["members"]
    assert (status, member["config"]) == (1, [])
    assert [entry["max_abs"] for entry in member["tensors"]] == [0.5, pytest.approx(0.25, abs=1e-6)]
    assert all(entry["tensor"].endswith("bias") for entry in member["tensors"])


def test_fields_and_missing_tensors_are_listed(pair: Path, command: Command) -> None:
    _, said = command("diff", pair / "a", pair / "c")
    (member,) = said["members"]
    fields = {entry["field"]: (entry["a"], entry["b"]) for entry in member["config"]}
    assert fields == {
        "reft.positions": ("f2+l2", "l1"),
        "reft.layers_to_transform": (None, [0]),
        "reft.act_fn": (None, "relu"),
    }
    assert sum(entry.get("only") == "a" for entry in member["tensors"]) == 2 * 3


def test_members_of_only_one_bundle_are_named(folders: Path, command: Command) -> None:
    status, said = command("diff", folders / "both", folders / "lora")
    assert status == 1
    assert said["only"] == [{"member": "edit", "in": "a"}]
    assert [member["member"] for member in said["members"]] == ["default"]


def test_the_screen_lists_the_largest_first(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(pair / "a"), str(pair / "b")]) == 1
    out = capsys.readouterr().out
    assert "0 config fields and 2 tensors differ" in out
    assert out.index("0.5") < out.index("0.25")
