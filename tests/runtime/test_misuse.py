"""Mistakes and forgeries that once passed in silence: each is refused, and nothing is changed by the attempt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.bundle import INDEX_NAME
from peft_reft.hub_format.errors import ConfigError, ManifestError, PositionError, ReftError
from peft_reft.hub_format.writer import write_adapter_files

IDS = token_ids(2, 8)


def _edit(**changes: object) -> ReftConfig:
    return ReftConfig(**{"r": 2, "positions": "f2+l2", "init_weights": False, "task_type": "CAUSAL_LM", **changes})


def _mixed() -> MixedReftModel:
    lora = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=["q_proj"])
    return MixedReftModel.from_configs(base_model("llama"), {"default": lora, "edit": _edit()}).eval()


def test_a_file_cannot_carry_weights_of_the_base(tmp_path: Path) -> None:
    reft_model("llama", positions="f2+l2").save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.weight"
    base = base_model("llama")
    before = base.model.layers[0].self_attn.q_proj.weight.clone()
    save_file({**load_file(file), name: torch.zeros_like(before)}, file)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["reft"].pop("tensors")
    with pytest.raises(ReftError, match="belongs to no part"):
        write_adapter_files(tmp_path, config, base_model={}, producer={"name": "x", "version": "1"})
    with pytest.raises(ReftError):
        PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(base.model.layers[0].self_attn.q_proj.weight, before)


def test_a_checkpoint_without_its_index_is_not_resumed_in_part(tmp_path: Path) -> None:
    _mixed().save_pretrained(str(tmp_path))
    (tmp_path / INDEX_NAME).unlink()
    with pytest.raises(ManifestError, match="has no"):
        _mixed().load_adapter(str(tmp_path), "default")


@pytest.mark.parametrize("shape", [(-1,), (1, 2, 8)])
def test_labels_of_another_shape_say_nothing_of_the_prompt(shape: tuple[int, ...]) -> None:
    model = reft_model("llama", positions="l2").train()
    labels = torch.cat([torch.full((2, 4), -100), IDS[:, 4:]], 1)
    with pytest.raises(PositionError, match="one entry per token"):
        model(IDS, labels=labels.reshape(shape))


def test_a_name_given_twice_edits_once() -> None:
    model = _mixed()
    model.set_adapter(["edit"])
    once = model(IDS).logits
    model.set_adapter(["edit", "edit"])
    assert torch.equal(model(IDS).logits, once)


def test_a_failed_attempt_leaves_the_base_as_it_was() -> None:
    base = base_model("llama")
    before = base(IDS).logits
    lora = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=["q_proj"])
    with pytest.raises(ReftError, match="no layer 99"):
        MixedReftModel.from_configs(base, {"default": lora, "edit": _edit(layers_to_transform=99)})
    assert torch.equal(base(IDS).logits, before)


def test_parts_of_a_mixed_model_have_one_task() -> None:
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="task_type"):
        MixedReftModel.from_configs(base_model("llama"), {"default": lora, "edit": _edit(task_type="SEQ_CLS")})


def test_a_dict_of_stacks_on_a_model_with_one_is_refused() -> None:
    with pytest.raises(PositionError, match="is a dict"):
        reft_model("llama", positions="f2")(
            IDS, intervention_locations={"default": {"encoder": torch.zeros(2, 1, 1, dtype=torch.long)}}
        )


@pytest.mark.parametrize("name", ["..", "a.b", "", "../x", "reft", "x" * 65])
def test_names_that_cannot_be_a_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        reft_model("llama", positions="f2").add_adapter(name, _edit())


def test_a_module_that_holds_a_site_cannot_be_saved_in_full() -> None:
    with pytest.raises(ConfigError, match="holds the site"):
        reft_model("llama", positions="f2", modules_to_save=["model"])


def test_links_inside_a_bundle_are_refused(tmp_path: Path) -> None:
    bundle, outside = tmp_path / "bundle", tmp_path / "outside"
    _mixed().save_pretrained(str(bundle))
    (bundle / "reft" / "edit").rename(outside)
    (bundle / "reft" / "edit").symlink_to(outside)
    with pytest.raises(ReftError, match="link"):
        MixedReftModel.from_pretrained(base_model("llama"), str(bundle))
    with pytest.raises(ReftError, match="link"):
        _mixed().save_pretrained(str(bundle))


def test_a_stored_config_without_its_behaviour_is_no_set_of_defaults(tmp_path: Path) -> None:
    reft_model("llama", positions="f3+l3").save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config.pop("reft")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no object 'reft'"):
        base_model("llama").load_adapter(str(tmp_path))
