"""`peft-reft bundle`: a LoRA and a ReFT that were saved apart become one folder, their bytes unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub.folders import upload
from peft import PeftModel

from contract.tiny import base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, push_to_hub
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from tools.loopback_hub import LoopbackHub

from .conftest import Command

LORA = (CONFIG_NAME, WEIGHTS_NAME)
REFT = (*LORA, MANIFEST_NAME)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(2, 9)).logits


def test_two_folders_become_one_that_loads_as_both(command: Command, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    status, said = command("bundle", folders / "lora", folders / "reft", "--out", out)
    assert (status, said["members"], said["path"]) == (0, ["default", "edit"], str(out))
    assert all((out / name).read_bytes() == (folders / "lora" / name).read_bytes() for name in LORA)
    assert all((out / "reft/edit" / name).read_bytes() == (folders / "reft" / name).read_bytes() for name in REFT)
    assert command("validate", out)[0] == 0
    mixed = MixedReftModel.from_pretrained(base_model("llama"), out)
    together = PeftModel.from_pretrained(base_model("llama"), str(folders / "lora"))
    by_hand = MixedReftModel.from_peft(together)
    by_hand.add_adapter("edit", ReftConfig.from_pretrained(str(folders / "reft")))
    by_hand.load_adapter(str(folders / "reft"), "edit")
    by_hand.set_adapter(["default", "edit"])
    assert torch.equal(logits(mixed), logits(by_hand))
    assert torch.equal(
        logits(PeftModel.from_pretrained(base_model("llama"), str(out))),
        logits(PeftModel.from_pretrained(base_model("llama"), str(folders / "lora"))),
    )


def test_a_bundle_takes_another_edit_and_repositories_are_parts(
    hub: LoopbackHub, command: Command, folders: Path, tmp_path: Path
) -> None:
    upload(hub, folders / "lora", "me/lora")
    upload(hub, folders / "reft", "me/reft")
    assert command("bundle", "me/lora", "me/reft", "--out", tmp_path / "one")[0] == 0
    status, said = command("bundle", tmp_path / "one", folders / "reft", "--out", tmp_path / "two", "--name", "tone")
    assert (status, said["members"]) == (0, ["default", "edit", "tone"])
    third = tmp_path / "two" / "reft" / "tone"
    assert command("bundle", folders / "lora", third, "--out", tmp_path / "three")[0] == 0
    assert command("push", tmp_path / "two", "me/both")[0] == 0
    assert list(MixedReftModel.from_pretrained(base_model("llama"), "me/both").peft_config) == [
        "default",
        "edit",
        "tone",
    ]


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("swapped", "bundle.index"),
        ("two_loras", None),
        ("taken", None),
        ("default", None),
        ("bad_name", "name"),
        ("exists", None),
        ("tampered", "integrity.file"),
        ("other_base", "base.name"),
        ("missing", "hub.name"),
    ],
)
def test_what_makes_no_bundle_is_refused_and_nothing_is_written(
    case: str, code: str | None, command: Command, folders: Path, tmp_path: Path
) -> None:
    lora, reft, out = folders / "lora", folders / "reft", tmp_path / "out"
    options: list[object] = []
    if case == "swapped":
        lora, reft = reft, lora
    elif case == "two_loras":
        reft = lora
    elif case == "taken":
        lora = folders / "both"
    elif case in ("default", "bad_name"):
        options = ["--name", "default" if case == "default" else "a/b"]
    elif case == "exists":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif case == "tampered":
        reft = Path(shutil.copytree(reft, tmp_path / "reft"))
        (reft / WEIGHTS_NAME).write_bytes((reft / WEIGHTS_NAME).read_bytes()[:-1] + b"x")
    elif case == "other_base":
        lora, reft = (Path(shutil.copytree(source, tmp_path / source.name)) for source in (lora, reft))
        config = json.loads((lora / CONFIG_NAME).read_text())
        (lora / CONFIG_NAME).write_text(json.dumps({**config, "base_model_name_or_path": "me/one"}))
        model = PeftModel.from_pretrained(base_model("llama"), str(reft))
        model.peft_config["default"].base_model_name_or_path = "me/another"
        model.save_pretrained(str(reft))
    elif case == "missing":
        reft = tmp_path / "nowhere"
    status, said = command("bundle", lora, reft, "--out", out, *options)
    assert (status, said["ok"]) == (1, False)
    assert code in (None, said["error"]["code"])
    assert said["error"]["rule"] or said["error"]["fix"]
    assert (sorted(path.name for path in out.iterdir()) == ["mine.txt"]) if case == "exists" else not out.exists()
    if case == "other_base":
        assert command("bundle", lora, reft, "--out", out, "--allow-other-base")[0] == 0


def test_it_is_known_to_the_library_that_pushes(
    hub: LoopbackHub, command: Command, folders: Path, tmp_path: Path
) -> None:
    assert command("bundle", folders / "lora", folders / "reft", "--out", tmp_path / "both")[0] == 0
    push_to_hub(MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "both"), "me/again")
    assert command("diff", tmp_path / "both", "me/again")[1]["different"] is False
