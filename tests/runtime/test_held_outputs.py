"""What a module gave is left as it was for whoever kept it: hooks, wrappers, hooks on all modules, modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, BloomForCausalLM

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig

IDS = token_ids(2, 6)


def bloom() -> nn.Module:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "pad_token_id": 0}
    return BloomForCausalLM(BloomConfig(initializer_range=0.3, **settings)).eval()


def llama() -> nn.Module:
    return base_model("llama")


PLACES = [(llama, "model.layers.0.self_attn", "attention_output"), (bloom, "transformer.h.0", "block_output")]
"""Modules that give a tuple, and the component that is their output."""


def with_edits(base: nn.Module, component: str = "block_output") -> Any:
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", component=component, init_weights=False)
    return get_peft_model(base, config).eval()


@torch.no_grad()
def given_by(base: nn.Module, path: str, ids: Tensor = IDS) -> Tensor:
    """The first element of what a module of a bare model gives."""
    seen: list[Tensor] = []
    handle = base.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(first(output)))
    base(input_ids=ids)
    handle.remove()
    return seen[0].clone()


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def by_hook(module: nn.Module, kept: list[Any]) -> None:
    module.register_forward_hook(lambda module, args, output: kept.append(output))


def by_wrapper(module: nn.Module, kept: list[Any]) -> None:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kept.append(own(*args, **kwargs))
        return kept[-1]

    module.forward = forward


@pytest.mark.parametrize("keep", [by_hook, by_wrapper])
@pytest.mark.parametrize(("make", "path", "component"), PLACES)
def test_a_tuple_that_is_kept_holds_what_it_held(
    make: Callable[[], nn.Module], path: str, component: str, keep: Callable[[nn.Module, list[Any]], None]
) -> None:
    expected, kept = given_by(make(), path), list[Any]()
    base = make()
    keep(base.get_submodule(path), kept)
    model = with_edits(base, component)
    kept.clear()
    with torch.no_grad():
        model(input_ids=IDS)
    assert isinstance(kept[0], tuple)
    assert torch.equal(kept[0][0], expected)


class Keeping(TorchDispatchMode):
    """Keeps every tensor that is made."""

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kept.append(function(*args, **(kwargs or {})))
        return self.kept[-1]


@contextmanager
def hooked_everywhere(kept: list[Any]) -> Iterator[None]:
    handle = register_module_forward_hook(lambda module, args, output: kept.append(output))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("watch", [hooked_everywhere, Keeping])
def test_what_is_kept_of_the_first_forward_of_a_process(watch: Callable[[list[Any]], Any]) -> None:
    expected, kept = given_by(llama(), "model.layers.0"), list[Any]()
    model = with_edits(llama())
    with torch.no_grad(), watch(kept):
        model(input_ids=IDS)
    assert any(isinstance(one, Tensor) and one.shape == expected.shape and torch.equal(one, expected) for one in kept)


def test_a_hook_on_all_modules_leaves_no_wrong_count_behind() -> None:
    expected, kept = given_by(llama(), "model.layers.0"), list[Any]()
    with torch.no_grad(), hooked_everywhere([]):
        with_edits(llama())(input_ids=IDS)
    base = llama()
    by_hook(base.get_submodule("model.layers.0"), kept)
    model = with_edits(base)
    kept.clear()
    with torch.no_grad():
        model(input_ids=IDS)
    assert torch.equal(kept[0], expected)


def test_memory_that_torch_does_not_own_is_not_written_to() -> None:
    base, memory = llama(), numpy.ones((2, 6, 32), dtype=numpy.float32)
    base.get_submodule("model.layers.0").forward = lambda hidden_states, *args, **kwargs: torch.from_numpy(memory)
    model = with_edits(base)
    with torch.no_grad():
        model(input_ids=IDS)
    assert (memory == 1).all()
