"""PEFT's verbs on adapters of different positions: load, switch, delete, count, report; merging is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mixed.tiny import mixed_model
from peft import LoraConfig, PeftConfig, PeftModel, get_model_status, get_peft_model
from torch import Tensor, nn

from contract.recording import edited_by
from contract.tiny import BLOCKS, HIDDEN, base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, MergeError

PER_BLOCK = 4 * HIDDEN * 2 + 4
"""Parameters of a LoReFT of rank 4."""
SECOND: dict[str, Any] = {"positions": "l3", "intervention": "bias", "layers_to_transform": [1], "init_weights": False}


def two_adapters(**more: Any) -> PeftModel:
    """LoReFT on the first two tokens of all blocks, and a bias on the last three of one."""
    model = reft_model("llama", positions="f2", **more)
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", **SECOND))
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def columns(model: PeftModel, ids: Tensor, layer: int) -> set[int]:
    """Columns of the first row that a block's edit changes."""
    return {column for row, column in edited_by(model, "llama", layer, lambda: model(input_ids=ids)) if row == 0}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_of_other_positions_is_loaded_under_another_name(tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    """Both were saved as `default`; no file is touched, and each keeps its own positions."""
    ids = token_ids(2, 7)
    expected = []
    for folder, spec in {"one": "f2", "two": "l3"}.items():
        alone = reft_model("llama", positions=spec)
        expected.append(logits(alone, ids))
        alone.save_pretrained(str(tmp_path / folder))
    model = PeftModel.from_pretrained(base_model("llama"), str(tmp_path / "one"), low_cpu_mem_usage=low_cpu_mem_usage)
    model.load_adapter(str(tmp_path / "two"), "second", low_cpu_mem_usage=low_cpu_mem_usage)
    model.eval()
    assert torch.equal(logits(model, ids), expected[0])
    assert columns(model, ids, 0) == {0, 1}
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), expected[1])
    assert columns(model, ids, 0) == {4, 5, 6}
    model.base_model.set_adapter(["default", "second"])
    assert columns(model, ids, 0) == {0, 1, 4, 5, 6}
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_an_adapter_is_made_on_the_meta_device_and_filled_when_it_is_loaded(tmp_path: Path) -> None:
    saved = two_adapters()
    saved.save_pretrained(str(tmp_path))
    model = get_peft_model(
        base_model("llama"), ReftConfig(task_type="CAUSAL_LM", positions="f2"), low_cpu_mem_usage=True
    )
    edits = {name: value for name, value in model.named_parameters() if ".reft." in name}
    assert edits
    assert all(value.is_meta for value in edits.values())
    model.load_adapter(str(tmp_path), "default", low_cpu_mem_usage=True)
    assert torch.equal(logits(model.eval(), token_ids(2, 7)), logits(saved, token_ids(2, 7)))


def test_a_switch_decides_what_trains() -> None:
    model = two_adapters()
    for name in ("second", "default"):
        model.set_adapter(name)
        trained = {key for key, value in model.named_parameters() if value.requires_grad}
        assert trained == {key for key, _ in model.named_parameters() if f".{name}." in key}
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    assert not any(value.requires_grad for value in model.parameters())


def test_a_deleted_adapter_is_gone_and_the_rest_edit_as_before() -> None:
    model, ids = two_adapters(), token_ids(2, 7)
    model.set_adapter("second")
    expected = logits(model, ids)
    model.delete_adapter("default")
    assert torch.equal(logits(model, ids), expected)
    assert list(model.peft_config) == ["second"]
    assert columns(model, ids, 0) == set()
    assert columns(model, ids, 1) == {4, 5, 6}
    with pytest.raises(ValueError, match="default"):
        model.delete_adapter("default")


def test_the_active_adapter_may_be_deleted() -> None:
    model, ids = two_adapters(), token_ids(2, 7)
    model.set_adapter("second")
    expected = logits(model, ids)
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="was active"):
        model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), expected)


def test_the_number_of_parameters_is_that_of_the_active_edits(capsys: pytest.CaptureFixture[str]) -> None:
    model = two_adapters()
    total = sum(value.numel() for value in model.parameters())
    assert model.get_nb_trainable_parameters() == (BLOCKS * PER_BLOCK, total)
    model.print_trainable_parameters()
    assert f"trainable params: {BLOCKS * PER_BLOCK:,} || all params: {total:,}" in capsys.readouterr().out
    model.set_adapter("second")
    assert model.get_nb_trainable_parameters() == (HIDDEN, total)


def test_the_status_of_a_model_names_its_adapters() -> None:
    model = two_adapters()
    status = model.get_model_status()
    assert status.peft_types == {"default": "REFT", "second": "REFT"}
    assert (status.adapter_model_type, status.num_adapter_layers) == ("ReftModel", BLOCKS)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.available_adapters == ["default", "second"]
    assert status.requires_grad == {"default": True, "second": False}
    assert status.devices == {"default": ["cpu"], "second": ["cpu"]}
    assert status.trainable_params == BLOCKS * PER_BLOCK
    model.base_model.set_adapter(["default", "second"])
    assert model.get_model_status().active_adapters == ["default", "second"]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
    model.delete_adapter("default")
    assert model.get_model_status().available_adapters == ["second"]


def test_the_status_of_a_layer_names_the_adapters_of_its_site() -> None:
    layers = {status.name: status for status in two_adapters().get_layer_status()}
    assert list(layers) == [f"model.model.layers.{block}.reft" for block in range(BLOCKS)]
    for block, status in enumerate(layers.values()):
        names = ["default", "second"] if block == 1 else ["default"]
        assert (status.module_type, status.enabled, status.merged_adapters) == ("ReftLayer", True, [])
        assert status.available_adapters == names
        assert status.requires_grad == {name: name == "default" for name in names}
        assert status.devices == {name: ["cpu"] for name in names}


def test_the_status_of_a_model_whose_adapter_transformers_added() -> None:
    base = base_model("llama")
    base.add_adapter(ReftConfig(task_type="CAUSAL_LM", positions="f2"), adapter_name="mine")
    status = get_model_status(base)
    assert (status.num_adapter_layers, status.active_adapters) == (BLOCKS, ["mine"])
    assert status.trainable_params == sum(value.numel() for value in base.parameters() if value.requires_grad)


def test_a_mixed_model_counts_both_parts(capsys: pytest.CaptureFixture[str]) -> None:
    model = mixed_model()
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert any(".reft." in name for name, value in model.named_parameters() if value.requires_grad)
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,} ||" in capsys.readouterr().out
    assert model.get_model_status().trainable_params == trainable


def test_a_module_saved_in_full_goes_with_its_adapter(tmp_path: Path) -> None:
    model, ids = two_adapters(modules_to_save=["lm_head"]), token_ids(2, 7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save.default" in name:
                value.mul_(-2.0)
    with_head = logits(model, ids)
    model.set_adapter("second")
    without = logits(model, ids)
    assert not torch.allclose(with_head, without)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, ids), with_head)
    loaded.load_adapter(str(tmp_path / "second"), "second")
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded.eval(), ids), without)


def test_two_active_adapters_cannot_both_replace_a_module() -> None:
    model = reft_model("llama", positions="f2", modules_to_save=["lm_head"])
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="l2", modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="Only one adapter"):
        model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: model.merge_adapter(),
        lambda model: model.merge_adapter(["default"], safe_merge=True),
        lambda model: model.unmerge_adapter(),
        lambda model: model.merge_and_unload(),
        lambda model: model.merge_and_unload(progressbar=True, safe_merge=True, adapter_names=["default"]),
    ],
    ids=["merge_adapter", "merge_adapter-safe", "unmerge_adapter", "merge_and_unload", "merge_and_unload-safe"],
)
def test_merging_is_refused_with_the_reason_and_what_to_do_and_changes_nothing(verb: Any) -> None:
    model, ids = two_adapters(), token_ids(2, 7)
    expected = logits(model, ids)
    with pytest.raises(MergeError, match=r"positions.*unload\(\)"):
        verb(model)
    assert torch.equal(logits(model, ids), expected)


def test_the_type_has_a_config_by_name() -> None:
    assert type(PeftConfig.from_peft_type(peft_type="REFT")) is ReftConfig


def test_a_lora_that_is_read_as_a_reft_is_refused_by_its_type(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], layers_to_transform=[0]).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="peft_type='LORA'"):
        ReftConfig.from_pretrained(str(tmp_path))


def test_pefts_own_mixed_model_refuses_the_type() -> None:
    with pytest.raises(ValueError, match="'REFT' is not compatible"):
        get_peft_model(base_model("llama"), ReftConfig(positions="f2"), mixed=True)
