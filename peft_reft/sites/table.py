"""Site groups × stacks → the list of sites: which module carries which interventions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from peft_reft.hub_format.errors import SiteError

from .components import component_module
from .stacks import Stack

__all__ = ["Site", "site_table"]


@dataclass(frozen=True)
class Site:
    """One place that is edited.

    Attributes:
        path: dotted name of the module whose output is edited.
        stack: the stack it belongs to.
        block: index of its block in the stack.
        groups: numbers of the site groups that edit here.
    """

    path: str
    stack: Stack
    block: int
    groups: tuple[int, ...]


def site_table(
    model: nn.Module, stacks: Sequence[Stack], groups: Iterable[tuple[Sequence[int] | None, str]]
) -> list[Site]:
    """The sites of an adapter, in the order of the forward pass.

    Args:
        model: the model.
        stacks: its stacks, from `find_stacks`.
        groups: for each site group its layers (None: all; negatives from the end) and its component.

    Raises:
        SiteError: a layer that a stack does not have, or a component that a block does not have.
    """
    places: dict[tuple[int, int, str], list[int]] = {}
    for number, (layers, component) in enumerate(groups):
        for order, stack in enumerate(stacks):
            for block in _indices(layers, stack):
                inner = component_module(model.get_submodule(f"{stack.path}.{block}"), component)
                path = ".".join(filter(None, (stack.path, str(block), inner)))
                places.setdefault((order, block, path), []).append(number)
    return [
        Site(path, stacks[order], block, tuple(numbers)) for (order, block, path), numbers in sorted(places.items())
    ]


def _indices(layers: Sequence[int] | None, stack: Stack) -> list[int]:
    if layers is None:
        return list(range(stack.length))
    for layer in layers:
        if not -stack.length <= layer < stack.length:
            raise SiteError(
                f"layers_to_transform={list(layers)!r}: there is no layer {layer}",
                code="site.layer",
                value=layer,
                rule=f"{stack.path!r} has {stack.length} layers: 0 to {stack.length - 1}, or -1 to -{stack.length}",
            )
    indices = sorted(layer % stack.length for layer in layers)
    if len(set(indices)) != len(indices):
        raise SiteError(
            f"layers_to_transform={list(layers)!r} names a layer twice, once counted from the end",
            code="site.layer",
            value=list(layers),
            rule=f"{stack.path!r} has {stack.length} layers",
        )
    return indices
