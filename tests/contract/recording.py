"""Which tokens were edited, read from activations: what a block gave against what the next module was called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from .tiny import BLOCKS, BY_NAME

Tokens = set[tuple[int, int]]


def reader_of(model: PeftModel, name: str, layer: int, role: str = "only") -> nn.Module:
    """The module that is called with a block's output: the next block, or what follows the last."""
    architecture, base = BY_NAME[name], model.get_base_model()
    path = architecture.after[role] if layer == BLOCKS - 1 else f"{architecture.blocks[role]}.{layer + 1}"
    return base.get_submodule(path)


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Everything that a module is called with, one `[batch, seq, hidden]` per call."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def raw_outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Everything that a module gives before any other hook has seen it."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    handle = module.register_forward_hook(note, prepend=True)
    try:
        yield seen
    finally:
        handle.remove()


def differing(one: Tensor, other: Tensor, *, start: int = 0) -> Tokens:
    """Tokens (row, column) whose hidden states are not the same to the last bit; columns count from `start`."""
    assert one.isfinite().all()
    assert other.isfinite().all()
    return {(row, start + column) for row, column in (one != other).any(-1).nonzero().tolist()}


def edited_by(model: PeftModel, name: str, layer: int, call: Callable[[], Any], role: str = "only") -> Tokens:
    """Tokens whose hidden states after a block differ between the model with and without its adapter.

    Only for adapters whose first edited block is this one: further down everything differs.
    """
    reader = reader_of(model, name, layer, role)
    with inputs_of(reader) as edited:
        call()
    with model.disable_adapter(), inputs_of(reader) as plain:
        call()
    assert len(edited) == len(plain) == 1
    return differing(edited[0], plain[0])


def edited_while_generating(
    model: PeftModel, name: str, layer: int, call: Callable[[], Any], *, role: str = "only", use_cache: bool = True
) -> list[Tokens]:
    """For each forward of a `generate` the tokens edited after a block, as (row, absolute slot)."""
    block = model.get_base_model().get_submodule(f"{BY_NAME[name].blocks[role]}.{layer}")
    with raw_outputs_of(block) as raw, inputs_of(reader_of(model, name, layer, role)) as read:
        call()
    assert len(raw) == len(read) > 1
    found, start = [], 0
    for before, after in zip(raw, read, strict=True):
        found.append(differing(after, before, start=start))
        start += before.shape[1] if use_cache else 0
    return found


def zero_unit(model: nn.Module, number: int) -> None:
    """Make one unit of every site edit nothing (for the kind `direft`: P = 0)."""
    chosen = [
        parameter
        for name, parameter in model.named_parameters()
        if f".reft_{number}." in name and name.endswith("projection")
    ]
    assert chosen
    with torch.no_grad():
        for parameter in chosen:
            parameter.zero_()
