"""The edit of one decoder layer as an operator of torch: one opaque node of a compiled graph, whatever it edits.

A graph is compiled once and replayed for every step, so it can hold neither which rows are edited nor a Python test of
it. The operator looks that up when it runs; in a step that edits nothing it returns at once and calls no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["ACTIVE", "OPERATORS", "Active", "LayerEdit"]

OPERATORS = ("peft_reft::edit_pair", "peft_reft::edit_plain")
"""Names by which vLLM splits a graph where they stand, so that no CUDA graph holds one."""


class LayerEdit(Protocol):
    """What one step edits at one layer."""

    @property
    def rows(self) -> Tensor:
        """The rows that are edited, long `[n]`, each once."""

    def edited(self, hidden: Tensor) -> Tensor:
        """h′ `[n, hidden]` for h `[n, hidden]` at those rows."""


@dataclass
class Active:
    """What the forward that runs edits, by number of the layer; empty between forwards."""

    layers: dict[int, LayerEdit] = field(default_factory=dict)


ACTIVE = Active()
"""Of this process: a worker of vLLM runs one model, one forward at a time."""


def edit_pair(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Edit the output of a block that gives its last branch and the residual stream apart: h = hidden + residual.

    In place: at an edited row h′ stands in `hidden` and 0 in `residual`, so their sum is h′ to the last bit.

    Args:
        hidden, residual: `[tokens, hidden]`.
        layer: number of the block.
    """
    found = ACTIVE.layers.get(layer)
    if found is None:
        return
    rows = found.rows
    states = hidden.index_select(0, rows) + residual.index_select(0, rows)
    hidden.index_copy_(0, rows, found.edited(states))
    residual.index_fill_(0, rows, 0)


def edit_plain(hidden: Tensor, layer: int) -> None:
    """Edit the output `[tokens, hidden]` of a block that gives h as it is, in place."""
    found = ACTIVE.layers.get(layer)
    if found is None:
        return
    hidden.index_copy_(0, found.rows, found.edited(hidden.index_select(0, found.rows)))


def _nothing_pair(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """What tracing sees: no output, and two inputs that change."""


def _nothing_plain(hidden: Tensor, layer: int) -> None:
    """What tracing sees: no output, and an input that changes."""


# no `torch.library.custom_op`: its wrappers cost more than the look-up, in every layer of every decoding step
_LIBRARY = torch.library.Library("peft_reft", "FRAGMENT")  # type: ignore[no-untyped-call]
_UNTYPED: Any = _LIBRARY
_TAGS = (torch.Tag.cudagraph_unsafe,)
_UNTYPED.define("edit_pair(Tensor(a!) hidden, Tensor(b!) residual, int layer) -> ()", tags=_TAGS)
_UNTYPED.define("edit_plain(Tensor(a!) hidden, int layer) -> ()", tags=_TAGS)
_UNTYPED.impl("edit_pair", edit_pair, "CompositeExplicitAutograd")
_UNTYPED.impl("edit_plain", edit_plain, "CompositeExplicitAutograd")
_UNTYPED._register_fake("edit_pair", _nothing_pair)
_UNTYPED._register_fake("edit_plain", _nothing_plain)
