"""Components on every architecture, read from activations: what the base computes there, plus v, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from contract.tiny import BY_NAME, HIDDEN, base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, SiteError

HEADS = 4
MODULES: dict[str, dict[str, str]] = {
    "llama": {"attention_output": "self_attn", "mlp_output": "mlp", "projection": "self_attn.o_proj"},
    "qwen3": {"attention_output": "self_attn", "mlp_output": "mlp", "projection": "self_attn.o_proj"},
    "mistral": {"attention_output": "self_attn", "mlp_output": "mlp", "projection": "self_attn.o_proj"},
    "gemma2": {
        "attention_output": "post_attention_layernorm",
        "mlp_output": "post_feedforward_layernorm",
        "projection": "self_attn.o_proj",
    },
    "gpt2": {"attention_output": "attn", "mlp_output": "mlp", "projection": "attn.c_proj"},
    "gpt_neox": {"attention_output": "attention", "mlp_output": "mlp", "projection": "attention.dense"},
    "opt": {"attention_output": "self_attn", "mlp_output": "fc2", "projection": "self_attn.out_proj"},
    "phi": {"attention_output": "self_attn", "mlp_output": "mlp", "projection": "self_attn.dense"},
    "bert": {
        "attention_output": "attention.output.dense",
        "mlp_output": "output.dense",
        "projection": "attention.output.dense",
    },
    "roberta": {
        "attention_output": "attention.output.dense",
        "mlp_output": "output.dense",
        "projection": "attention.output.dense",
    },
    "modernbert": {"attention_output": "attn", "mlp_output": "mlp", "projection": "attn.Wo"},
    "t5": {
        "attention_output": "layer.0.SelfAttention",
        "mlp_output": "layer.{last}.DenseReluDense",
        "projection": "layer.0.SelfAttention.o",
    },
}
"""Architecture → component → the module of a block that computes it, written down by hand."""

BLOCK = 1
PLACES = [(name, role) for name in MODULES for role in BY_NAME[name].blocks]


def first(value: Any) -> Tensor:
    found: Tensor = value if isinstance(value, Tensor) else value[0]
    return found


def block_path(name: str, role: str) -> str:
    return f"{BY_NAME[name].blocks[role]}.{BLOCK}"


def module_path(name: str, role: str, component: str) -> str:
    inner = MODULES[name][component].format(last=2 if role == "decoder" else 1)
    return f"{block_path(name, role)}.{inner}"


def flattened(hidden: Tensor) -> Tensor:
    """OPT's feed-forward part sees `[batch · seq, hidden]`."""
    return hidden.reshape(2, 6, -1)


def watch(model: nn.Module, path: str, run: Any, *, inputs: bool) -> tuple[Tensor, Tensor]:
    """What a module gave (or was called with) before our hook and after it."""
    module, seen = model.get_submodule(path), []

    def note_output(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(first(output).detach().clone())

    def note_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else next(iter(kwargs.values()))).detach().clone())

    if inputs:
        before = module.register_forward_pre_hook(note_input, with_kwargs=True, prepend=True)
        after = module.register_forward_pre_hook(note_input, with_kwargs=True)
    else:
        before = module.register_forward_hook(note_output, prepend=True)
        after = module.register_forward_hook(note_output)
    with torch.no_grad():
        run()
    before.remove()
    after.remove()
    return flattened(seen[0]), flattened(seen[1])


def call(name: str, model: nn.Module) -> Any:
    ids = token_ids(2, 6)
    more = {"decoder_input_ids": token_ids(2, 6, seed=1)} if name == "t5" else {}
    return lambda: model(input_ids=ids, **more)


def edited(name: str, role: str, component: str) -> tuple[Any, nn.Module, str]:
    """(PEFT model, base inside, list of the stack) with one random vector per edited token of the first two."""
    pattern = {"layers_pattern": BY_NAME[name].blocks[role]} if name == "t5" else {}
    config = {
        "intervention": "bias",
        "layers_to_transform": [BLOCK],
        "positions": "f1",
        "component": component,
        **pattern,
    }
    model = reft_model(name, **config)
    return model, model.get_base_model(), block_path(name, role)


def shift_of(model: nn.Module) -> Tensor:
    (found,) = [p for n, p in model.named_parameters() if n.endswith("shift")]
    return found.detach()


@pytest.mark.parametrize("component", ["block_input", "block_output", "attention_output", "mlp_output"])
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_the_component_is_edited_where_it_is_computed(name: str, role: str, component: str) -> None:
    model, base, block = edited(name, role, component)
    path = block if component.startswith("block") else module_path(name, role, component)
    before, after = watch(base, path, call(name, model), inputs=component == "block_input")
    change = after - before
    assert change.shape == (2, 6, HIDDEN)
    assert_close(change[:, 0], shift_of(model).expand(2, -1), rtol=0, atol=1e-5)
    assert not change[:, 1:].any()


@pytest.mark.parametrize(("name", "role"), PLACES)
@pytest.mark.parametrize("head", [0, 3])
def test_one_head_is_edited_before_the_output_projection(name: str, role: str, head: int) -> None:
    model, base, _ = edited(name, role, f"head_output[{head}]")
    path = module_path(name, role, "projection")
    before, after = watch(base, path, call(name, model), inputs=True)
    size = before.shape[-1] // HEADS
    change = (after - before).reshape(2, 6, HEADS, size)
    assert shift_of(model).shape == (size,)
    assert_close(change[:, 0, head], shift_of(model).expand(2, -1), rtol=0, atol=1e-5)
    change[:, 0, head] = 0
    assert not change.any()


@pytest.mark.parametrize(("name", "role"), PLACES)
def test_a_block_s_input_is_the_output_of_the_one_before(name: str, role: str) -> None:
    pattern = {"layers_pattern": BY_NAME[name].blocks[role]} if name == "t5" else {}
    logits = []
    for component, layer in (("block_input", 1), ("block_output", 0)):
        model = reft_model(name, positions="f2", component=component, layers_to_transform=[layer], r=3, **pattern)
        with torch.no_grad():
            logits.append(call(name, model)().logits)
    assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], call(name, base_model(name))().logits)


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("component", ["block_input", "attention_output", "head_output[1]"])
def test_gradients_survive_checkpointing(component: str, checkpointing: dict[str, bool]) -> None:
    grads = []
    for enabled in (False, True):
        model = reft_model("llama", positions="f2+l2", component=component, r=3)
        if enabled:
            model.enable_input_require_grads()
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.train()
        ids = token_ids(2, 8)
        labels = torch.where(torch.arange(8) < 5, -100, ids)
        model(input_ids=ids, labels=labels).loss.backward()
        grads.append([p.grad for n, p in model.named_parameters() if "reft_" in n])
    assert all(grad is not None and bool(grad.any()) for grad in grads[0])
    for plain, checkpointed in zip(*grads, strict=True):
        assert_close(plain, checkpointed)


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(SiteError, match="4 heads"):
        reft_model("llama", component="head_output[4]")


@pytest.mark.parametrize("component", ["", "block", "head_output", "head_output[-1]", "head_output[01]", 3, None])
def test_a_component_outside_the_list_is_refused(component: Any) -> None:
    with pytest.raises(ConfigError, match="component"):
        ReftConfig(component=component)


@pytest.mark.parametrize("component", ["attention_output", "head_output[1]"])
def test_unloading_leaves_the_checkpointing_function_as_it_was(component: str) -> None:
    model = reft_model("llama", component=component)
    base = model.get_base_model()
    model.enable_input_require_grads()
    base.gradient_checkpointing_enable()
    before = [layer._gradient_checkpointing_func for layer in base.model.layers]
    model.train()
    ids = token_ids(2, 6)
    model(input_ids=ids, labels=torch.where(torch.arange(6) < 3, -100, ids)).loss.backward()
    assert [layer._gradient_checkpointing_func for layer in base.model.layers] != before
    model.unload()
    assert [layer._gradient_checkpointing_func for layer in base.model.layers] == before
