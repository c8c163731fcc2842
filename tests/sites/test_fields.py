"""Configs whose layers differ: no field of theirs is read as if there were one value."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from peft_reft import ReftConfig
from peft_reft.sites import config_field
from peft_reft.sites.parts import head_count
from peft_reft.storage.identity import CONFIG_FIELDS, config_hash

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def config(**layers: dict[str, int]) -> LlamaConfig:
    made = LlamaConfig(vocab_size=64, num_hidden_layers=3, **SIZES)
    made.per_layer_config = {int(name.removeprefix("layer")): fields for name, fields in layers.items()}
    return made


def llama(**layers: dict[str, int]) -> LlamaForCausalLM:
    """Its modules are of the plain config, which Llama's code asks as a whole."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config()).eval()
    model.config = config(**layers)
    return model


@pytest.mark.parametrize("field", CONFIG_FIELDS)
def test_a_field_that_is_the_same_in_all_layers_is_one_value(field: str) -> None:
    assert config_field(config(), field) == getattr(config(), field)


def test_a_field_that_differs_is_the_layers_values() -> None:
    varied = config(layer1={"intermediate_size": 96})
    assert config_field(varied, "intermediate_size") == [64, 96, 64]
    assert config_field(varied, "hidden_size") == 32
    assert config_field(varied, "no_such_field", 7) == 7
    assert config_field(None, "hidden_size") is None


def test_layers_that_differ_are_another_base() -> None:
    hashes = {config_hash(config(**{f"layer{n}": {"intermediate_size": 96}})) for n in (0, 1, 2)}
    assert len(hashes | {config_hash(config())}) == 4
    assert config_hash(config(layer1={"intermediate_size": 64})) == config_hash(config())


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "head_output[3]"])
def test_an_adapter_is_made_where_layers_differ(component: str) -> None:
    """The config raises where it is asked for the field."""
    model = llama(layer1={"intermediate_size": 96})
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = model.config.intermediate_size
    adapted = get_peft_model(model, ReftConfig(task_type="CAUSAL_LM", component=component, init_weights=False)).eval()
    ids = torch.tensor([[5, 9, 33, 12]])
    with torch.no_grad():
        edited = adapted(ids).logits
        with adapted.disable_adapter():
            plain = adapted(ids).logits
    assert not torch.equal(edited, plain)


def test_a_number_of_heads_that_no_layer_says_and_layers_differ_in_is_not_guessed() -> None:
    """No attention of this block knows its heads, and the config names two numbers."""
    model = llama()
    block = model.model.layers[0]
    block.self_attn.config = None
    varied = config(layer1={"num_attention_heads": 2})
    assert head_count(block, "self_attn.o_proj", model.config) == 4
    assert head_count(block, "self_attn.o_proj", varied) is None
