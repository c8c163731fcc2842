"""Bundles: a hostile LoRA beside the ReFT, and an index that lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mixed.tiny import lora, mixed_model

from contract.tiny import base_model
from peft_reft import MixedReftModel
from peft_reft.hub_format.bundle import INDEX_NAME, Member, read_index, write_index
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, WEIGHTS_NAME

from . import folders as f

MEMBERS = [Member.at("default", "lora"), Member.at("edit", "reft")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    mixed_model().save_pretrained(str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def changed_config(folder: Path, **values: Any) -> None:
    f.edit(folder / CONFIG_NAME, lambda content: content.update(values))
    write_index(folder, MEMBERS)


def refused(folder: Path, code: str, **options: Any) -> None:
    with pytest.raises(ReftError) as caught:
        MixedReftModel.from_pretrained(base_model("llama"), str(folder), **options)
    assert caught.value.code == code, caught.value


def test_a_link_in_place_of_the_index_is_not_followed(bundle: Path) -> None:
    moved = (bundle / INDEX_NAME).rename(bundle.parent / "index.json")
    (bundle / INDEX_NAME).symlink_to(moved)
    with pytest.raises(ReftError) as caught:
        read_index(bundle)
    assert (caught.value.code, caught.value.file) == ("link", INDEX_NAME)
    moved.unlink()  # a dangling link is no missing index
    with pytest.raises(ReftError):
        read_index(bundle)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"r": 65_536}, "tensors.unfit"),
        ({"r": 200_000_000}, "config.value"),
        ({"r": True}, "config.value"),
        ({"rank_pattern": {"q_proj": 65_536}}, "tensors.unfit"),
        ({"rank_pattern": {"(a+)+$": 2}}, "bundle.pattern"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "bundle.pattern"),
        ({"target_modules": "(a+)+$"}, "bundle.pattern"),
        ({"exclude_modules": "(a+)+$"}, "bundle.pattern"),
        ({"layers_to_transform": [0], "layers_pattern": ["(a+)+$"]}, "bundle.pattern"),
    ],
)
def test_a_loras_config_that_would_harm_the_process_is_refused(
    bundle: Path, values: dict[str, Any], code: str
) -> None:
    changed_config(bundle, **values)
    refused(bundle, code)


def test_a_pattern_of_a_trusted_author_is_run_on_request(tmp_path: Path) -> None:
    mixed_model(default=lora(target_modules=".*(q|v)_proj")).save_pretrained(str(tmp_path / "bundle"))
    refused(tmp_path / "bundle", "bundle.pattern")
    MixedReftModel.from_pretrained(base_model("llama"), str(tmp_path / "bundle"), allow_patterns=True)


def test_a_checkpoint_of_a_lora_with_a_pattern_is_resumed(tmp_path: Path) -> None:
    """The model was made by its user: the stored pattern is compared and not run."""
    model = mixed_model(default=lora(target_modules=".*(q|v)_proj"))
    model.save_pretrained(str(tmp_path / "bundle"))
    model.load_adapter(str(tmp_path / "bundle"), "default", is_trainable=True)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_loras_weights_that_are_no_numbers_are_refused(bundle: Path, value: float) -> None:
    held = f.load_file(bundle / WEIGHTS_NAME)
    held[sorted(held)[0]].fill_(value)
    f.save_file(held, bundle / WEIGHTS_NAME, metadata={"format": "pt"})
    write_index(bundle, MEMBERS)
    refused(bundle, "tensors.finite")


def test_an_edits_weights_that_are_no_numbers_are_refused(bundle: Path) -> None:
    f.each(".bias", lambda t: torch.full_like(t, float("nan")))(bundle / "reft" / "edit")
    write_index(bundle, MEMBERS)
    refused(bundle, "tensors.finite")
