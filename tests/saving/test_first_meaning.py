"""Components that format 1.0 takes elsewhere in a base: written as 1.1, and refused in a file that says 1.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import SiteError
from tools.architectures.tiny import tiny_model

MOVED: list[tuple[str, str, dict[str, Any]]] = [
    ("GraniteForCausalLM", "attention_output", {"residual_multiplier": 0.22}),  # times the multiplier
    ("GraniteForCausalLM", "mlp_output", {"residual_multiplier": 0.22}),
    ("Gemma2ForCausalLM", "attention_output", {}),  # behind the norm
    ("Gemma2ForCausalLM", "mlp_output", {}),
    ("Olmo2ForCausalLM", "mlp_output", {}),
    ("BloomForCausalLM", "attention_output", {}),  # without the residual
    ("Qwen3MoeForCausalLM", "mlp_output", {}),  # which was the attention
    ("Phi3ForCausalLM", "head_output[1]", {}),  # which was taken from the input of qkv_proj
]
SAME: list[tuple[str, str, dict[str, Any]]] = [
    ("LlamaForCausalLM", "attention_output", {}),
    ("LlamaForCausalLM", "mlp_output", {}),
    ("LlamaForCausalLM", "head_output[3]", {}),
    ("GPT2LMHeadModel", "attention_output", {}),
    ("GPT2LMHeadModel", "mlp_output", {}),
    ("GPT2LMHeadModel", "head_output[1]", {}),
    ("BertForMaskedLM", "attention_output", {}),
    ("MistralForCausalLM", "mlp_output", {}),
    ("GraniteForCausalLM", "block_output", {"residual_multiplier": 0.22}),
    ("GraniteForCausalLM", "head_output[1]", {"residual_multiplier": 0.22}),
]


def config(component: str, **fields: Any) -> ReftConfig:
    return ReftConfig(component=component, positions="f2", init_weights=False, **fields)


def saved(model: PeftModel, folder: Path, *, first: bool = False) -> Path:
    """A folder of the model's adapter, or as a build of format 1.0 wrote it."""
    if first:
        model.peft_config["default"].moved = {}
    model.save_pretrained(str(folder))
    return folder


def versions(folder: Path) -> set[str]:
    return {
        json.loads((folder / "adapter_config.json").read_text("utf-8"))["reft"]["spec_version"],
        json.loads((folder / "reft_manifest.json").read_text("utf-8"))["spec_version"],
    }


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.tensor([[5, 9, 33, 7]])).logits
    return found


@pytest.mark.parametrize(("name", "component", "fields"), MOVED)
def test_a_component_with_another_meaning_is_written_as_1_1_and_refused_in_1_0(
    name: str, component: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = get_peft_model(tiny_model(name, **fields), config(component))
    folder = saved(model, tmp_path / "now")
    assert versions(folder) == {"1.1"}
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(name, **fields), str(folder))), logits(model))
    old = saved(model, tmp_path / "old", first=True)
    assert versions(old) == {"1.0"}
    with pytest.raises(SiteError, match=r"file of format 1\.0") as caught:
        PeftModel.from_pretrained(tiny_model(name, **fields), str(old))
    assert caught.value.code == "site.component"
    assert caught.value.value == component
    assert "train the adapter again" in str(caught.value)


@pytest.mark.parametrize(("name", "component", "fields"), SAME)
def test_a_component_that_has_not_moved_is_written_as_1_0_and_loads(
    name: str, component: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = get_peft_model(tiny_model(name, **fields), config(component))
    folder = saved(model, tmp_path)
    assert versions(folder) == {"1.0"}
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(name, **fields), str(folder))), logits(model))


def test_what_was_loaded_is_saved_as_what_it_is(tmp_path: Path) -> None:
    fields = {"residual_multiplier": 0.22}
    model = get_peft_model(tiny_model("GraniteForCausalLM", **fields), config("mlp_output"))
    first = saved(model, tmp_path / "one")
    loaded = PeftModel.from_pretrained(tiny_model("GraniteForCausalLM", **fields), str(first))
    assert versions(saved(loaded, tmp_path / "two")) == {"1.1"}


def test_one_group_of_several_is_enough(tmp_path: Path) -> None:
    groups = [{"component": "block_output"}, {"component": "mlp_output", "layers_to_transform": [1]}]
    made = config("block_output", interventions=groups)
    model = get_peft_model(tiny_model("GraniteForCausalLM", residual_multiplier=0.22), made)
    assert versions(saved(model, tmp_path)) == {"1.1"}


def test_transformers_own_way_refuses_too(tmp_path: Path) -> None:
    """It reads the config alone."""
    fields = {"residual_multiplier": 0.22}
    model = get_peft_model(tiny_model("GraniteForCausalLM", **fields), config("mlp_output"))
    now, old = saved(model, tmp_path / "now"), saved(model, tmp_path / "old", first=True)
    base = tiny_model("GraniteForCausalLM", **fields)
    base.load_adapter(str(now))
    assert torch.equal(logits(base), logits(model))
    with pytest.raises(SiteError, match=r"file of format 1\.0"):
        tiny_model("GraniteForCausalLM", **fields).load_adapter(str(old))


def test_an_adapter_beside_it_and_a_lora_move_nothing(tmp_path: Path) -> None:
    from peft import LoraConfig

    base = get_peft_model(tiny_model("LlamaForCausalLM"), LoraConfig(target_modules="all-linear")).merge_and_unload()
    model = get_peft_model(base, config("block_output"))
    model.add_adapter("second", config("mlp_output"))
    model.add_adapter("third", config("attention_output"))
    model.save_pretrained(str(tmp_path))
    assert versions(tmp_path / "second") == versions(tmp_path / "third") == {"1.0"}
