"""Edited tokens, read from activations by plain hooks: what a block gave against what the next one was called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from peft_reft import ReftConfig

Tokens = list[list[int]]


def edited_model(base: nn.Module, **config: Any) -> Any:
    """The model with one large random edit per site, in eval mode; positions and the rest as in `ReftConfig`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(base, ReftConfig(init_weights=False, **config)).eval()


@contextmanager
def given_by(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives in each call, after every hook that was there before this one."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append(first(output).detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def outputs_with_and_without(model: Any, block: str, call: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """What a block gives in each call, with the adapter and without."""
    module = model.get_base_model().get_submodule(block)
    with given_by(module) as edited:
        call()
    with model.disable_adapter(), given_by(module) as plain:
        call()
    assert len(edited) == len(plain) > 0
    return edited, plain


def edited_tokens_of(model: Any, block: str, call: Callable[[], Any]) -> Tokens:
    """(row, column) of the tokens that differ with and without the adapter after the first edited block.

    Only for blocks that give `[batch, seq, hidden]`.
    """
    edited, plain = outputs_with_and_without(model, block, call)
    assert len(edited) == 1
    assert edited[0].isfinite().all()
    found: Tokens = (edited[0] != plain[0]).any(-1).nonzero().tolist()
    return found
