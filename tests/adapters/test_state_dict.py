"""PEFT's own ways to take an adapter's tensors from a model and to make one from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from torch import nn

from contract.tiny import BLOCKS, base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import AdapterLoadError, ConfigError


def config(**fields: Any) -> ReftConfig:
    return ReftConfig(**{"task_type": "CAUSAL_LM", "positions": "f2", "init_weights": False, **fields})


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("fields", [{}, {"component": "mlp_output", "layers_to_transform": [0, 2]}], ids=["", "mlp"])
def test_an_adapter_is_injected_with_its_tensors_at_hand(fields: dict[str, Any], low_cpu_mem_usage: bool) -> None:
    """PEFT's other methods guess their modules from the names; here the config says them."""
    ids = token_ids(2, 7)
    model = inject_adapter_in_model(config(**fields), base_model("llama"))
    tensors = get_peft_model_state_dict(model)
    again = inject_adapter_in_model(
        config(**fields), base_model("llama"), state_dict=tensors, low_cpu_mem_usage=low_cpu_mem_usage
    )
    result = set_peft_model_state_dict(again, tensors, low_cpu_mem_usage=low_cpu_mem_usage)
    assert result.unexpected_keys == []
    assert set(get_peft_model_state_dict(again)) == set(tensors)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("layers", "message"), [([0], "'model.layers.1', which the config does not edit"), (None, "no tensor lies there")]
)
def test_tensors_of_other_sites_are_refused_before_anything_is_injected(layers: Any, message: str) -> None:
    model = inject_adapter_in_model(config(layers_to_transform=[0, 1]), base_model("llama"))
    tensors, base = get_peft_model_state_dict(model), base_model("llama")
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(AdapterLoadError, match=message):
        inject_adapter_in_model(config(layers_to_transform=layers), base, state_dict=tensors)
    assert [name for name, _ in base.named_modules()] == before
    inject_adapter_in_model(config(layers_to_transform=layers), base)  # the next one is not told by those tensors


def test_pefts_prefixes_choose_exactly_the_tensors_of_an_adapter() -> None:
    model = reft_model("llama", positions="f2+l2", share_weights=False)
    model.add_adapter("other", config(layers_to_transform=[1]))
    model.base_model.model.reft_foobar = nn.Linear(2, 2)  # a module of the base whose name looks like ours
    for name, sites, units in (("default", range(BLOCKS), 2), ("other", [1], 1)):
        prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=name)
        chosen = _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes)
        expected = {
            f"base_model.model.model.layers.{site}.reft.reft_{unit}.{name}.{tensor}"
            for site in sites
            for unit in range(units)
            for tensor in ("rotation", "weight", "bias")
        }
        assert set(chosen) == expected


def test_an_adapter_may_be_called_like_a_module_of_the_base() -> None:
    """Where nothing is trained; its name is taken out of a key once, where it stands for the adapter."""
    with pytest.raises(ConfigError, match="'layers' is part of the names"):
        get_peft_model(base_model("llama"), config(), adapter_name="layers")
    model = get_peft_model(base_model("llama"), config(inference_mode=True), adapter_name="layers")
    tensors = get_peft_model_state_dict(model, adapter_name="layers")
    assert all(name.startswith("base_model.model.model.layers.") for name in tensors)
    other = get_peft_model(base_model("llama"), config(), adapter_name="other")
    set_peft_model_state_dict(other, tensors, adapter_name="other")
    loaded = get_peft_model_state_dict(other, adapter_name="other")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensor: None,
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor > 0,
        lambda tensor: torch.eye(*tensor.shape, dtype=torch.int64),
    ],
    ids=["None", "list", "array", "sparse", "meta", "complex", "bool", "whole"],
)
def test_what_is_no_dense_tensor_of_real_numbers_is_refused_and_changes_nothing(spoil: Any) -> None:
    model = reft_model("llama", init_weights=False)
    held = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    name = next(name for name in held if name.endswith(".rotation"))
    with pytest.raises(AdapterLoadError) as found:
        set_peft_model_state_dict(model, {**held, name: spoil(held[name])})
    assert found.value.code == "load.fit"
    for name, tensor in get_peft_model_state_dict(model).items():
        assert torch.equal(tensor, held[name])
