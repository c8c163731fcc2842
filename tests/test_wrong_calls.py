"""Calls of public functions with what they cannot take: an error of our family that names value, rule and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from contract.tiny import base_model, reft_model
from peft_reft import MixedReftModel, ReftConfig, convert, list_adapters, push_to_hub, save_pretrained
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ConfigError, LocationError
from peft_reft.integrations import add_intervention_locations
from peft_reft.lookup import reft_layers

NO_PATH = [3, None, b"folder", [], "", "a\0b", "x" * 300]


@pytest.mark.parametrize("wrong", NO_PATH, ids=lambda wrong: repr(wrong)[:12])
def test_what_is_no_path_is_named(wrong: Any, tmp_path: Path) -> None:
    model = reft_model("gpt2")
    for call in (
        lambda: check_folder(wrong),
        lambda: list_adapters(wrong),
        lambda: convert(wrong, tmp_path / "new", base_model="me/base"),
        lambda: convert(tmp_path, wrong, base_model="me/base"),
        lambda: save_pretrained(model, wrong),
    ):
        with pytest.raises(ConfigError, match="path"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [None, "model", 3, []], ids=repr)
def test_only_a_model_is_saved_or_pushed(wrong: Any, tmp_path: Path) -> None:
    for call in (lambda: save_pretrained(wrong, tmp_path), lambda: push_to_hub(wrong, "me/reft")):
        with pytest.raises(ConfigError, match="PeftModel"):
            call()


@pytest.mark.parametrize("wrong", [None, 3, "text", [[1, 2]]], ids=repr)
def test_an_example_is_a_dict_of_columns(wrong: Any) -> None:
    with pytest.raises(LocationError, match="dict of columns"):
        add_intervention_locations(wrong, config=ReftConfig(positions="f1"))


@pytest.mark.parametrize("wrong", [3, "f1", {"positions": "f1"}], ids=repr)
def test_locations_follow_from_a_config(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="config"):
        add_intervention_locations({"input_ids": [5, 6]}, config=wrong)
    for value in (3, {"f1"}, ReftConfig()):
        with pytest.raises(ConfigError, match="positions"):
            add_intervention_locations({"input_ids": [5, 6]}, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["other", ["default", "other"], [None], [["default"]]], ids=repr)
def test_only_known_adapters_are_made_active(wrong: Any) -> None:
    mixed = MixedReftModel.from_configs(
        base_model("llama"), {"default": LoraConfig(target_modules=["q_proj"]), "edit": ReftConfig()}
    )
    for model in (reft_model("llama").base_model, mixed):
        with pytest.raises(ConfigError, match="default"):
            model.set_adapter(wrong)
        for no_name in (None, 3):
            with pytest.raises(ConfigError):
                model.set_adapter(no_name)


def test_the_features_of_a_site_are_the_width_that_is_edited() -> None:
    for component, width in (("block_output", 32), ("head_output[1]", 8)):
        for layer in reft_layers(reft_model("llama", component=component)):
            assert (layer.in_features, layer.out_features) == (width, width)
