"""The edit of one adapter at another factor, or nulled, for one forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_reft.interventions.bias import Bias
from peft_reft.layer import ReftLayer
from peft_reft.lookup import layers_of

from .objective import Draw, Pass

__all__ = ["draws_of_step", "null_delta", "steered", "units_of"]


def draws_of_step(factors: tuple[float, ...], seed: int, step: int) -> Draw:
    """Draws from the factors, the same ones whenever this step is computed: by every process, after a resume, in each
    of its accumulated batches. The global generator is left alone.
    """
    generator = random.Random(f"{seed}:{step}")
    return lambda: generator.choice(factors)


def null_delta(hidden: Tensor, vector: Tensor) -> Tensor:
    """−max(h·v, 0)/‖v‖² v: takes what h has of a direction out of it. Of a vector of length 0 it is 0.

    Args:
        hidden: h `[..., hidden]`.
        vector: v `[hidden]`.
    """
    length = vector.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return -((hidden @ vector).relu() / length)[..., None] * vector


def units_of(model: nn.Module, adapter: str) -> list[nn.Module]:
    """Every intervention of an adapter, one for each site and group."""
    return [layer.unit((adapter, number)) for layer in layers_of(model, adapter) for number in layer.units[adapter]]


def steered(model: nn.Module, adapter: str, one: Pass, run: Callable[[], Any]) -> Any:
    """What a function returns while an adapter edits as a pass says; its own factors come back, also if it raises.

    Args:
        model: with the adapter.
        adapter: its name.
        one: has a factor; of `nulled` the adapter's kind is `bias`.
        run: runs the model.
    """
    layers: list[ReftLayer] = layers_of(model, adapter)
    running = layers[0].running
    outer, resting = running.under, [layer.scaling[adapter] for layer in layers]
    handles: list[RemovableHandle] = []
    try:
        running.under = partial(steered, model, adapter, one)  # blocks that are recomputed edit so too
        for layer in layers:
            layer.scaling[adapter] = one.factor or 0.0
        if one.nulled:
            handles += [unit.register_forward_hook(_nulled) for unit in units_of(model, adapter)]
        return run()
    finally:
        running.under = outer
        for handle in handles:
            handle.remove()
        for layer, factor in zip(layers, resting, strict=True):
            layer.scaling[adapter] = factor


def _nulled(unit: Bias, given: tuple[Any, ...], delta: Tensor) -> Tensor:
    """A hook: the delta of a vector that is taken out instead of added."""
    hidden: Tensor = given[0]
    return null_delta(hidden, unit.parameter("shift", hidden))
