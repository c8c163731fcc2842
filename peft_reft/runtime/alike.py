"""Units that are alike: which they are, and their parameters stacked, so that one call does for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .situation import UnitKey

__all__ = ["Group", "apart", "is_wide", "names_of", "stacked"]


@dataclass(frozen=True, slots=True)
class Group:
    """Units that differ in their values only.

    Attributes:
        alike: what they share; units of another kind may have the same tensors.
        stacks: paths of those that they edit.
        places: path of the site and unit, of each.
        layers, units: the same.
        names: of their parameters, those together whose tensors have one shape: one call stacks them.
    """

    alike: Any
    stacks: set[str]
    places: list[tuple[str, UnitKey]]
    layers: list[Any]
    units: list[Any]
    names: list[list[str]]


def is_wide(group: Group) -> bool:
    """Whether edits are computed in float64, whatever the model computes in; MPS has none."""
    first, like = group.layers[0], group.units[0]
    return like.broadcasts and not first.training and like._parameters[group.names[0][0]].device.type != "mps"


def names_of(unit: Any) -> list[list[str]]:
    """Names of a unit's parameters, those together that are alike."""
    alike: dict[Any, list[str]] = {}
    for name, held in unit._parameters.items():
        alike.setdefault((held.shape, held.dtype, held.device), []).append(name)
    return list(alike.values())


def apart(names: Sequence[Sequence[str]], joined: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name → the stacked tensors `[units, …]` of all units, of tensors that were stacked with others."""
    found: dict[str, Tensor] = {}
    for together, held in zip(names, joined, strict=True):
        parts = [held] if len(together) == 1 else held.chunk(len(together))
        found.update(zip(together, parts, strict=True))
    return found


def stacked(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """`torch.stack` of each of several lists of one length, of tensors that learn."""
    found: tuple[Tensor, ...] = _Stacked.apply(len(parts[0]), *chain.from_iterable(parts))  # type: ignore[no-untyped-call]
    return found


class _Stacked(torch.autograd.Function):
    """`torch.stack`, whose backward pass takes one call for a list in place of one for each tensor."""

    @staticmethod
    def forward(ctx: Any, count: int, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.count = count
        ctx.set_materialize_grads(False)
        starts = range(0, len(parts), count)
        found = tuple(torch.stack(parts[at : at + count]) for at in starts)
        learn = [any(ctx.needs_input_grad[at + 1 : at + 1 + count]) for at in starts]
        ctx.mark_non_differentiable(*(held for held, learns in zip(found, learn, strict=True) if not learns))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        none = (None,) * ctx.count
        return None, *chain.from_iterable(none if grad is None else grad.unbind(0) for grad in grads)
