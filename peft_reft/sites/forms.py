"""How the states of a batch's tokens lie in a tensor: which axes are rows, tokens, residual streams, numbers.

The state of a token is all that a block hands on for it: where it has several residual streams (the hyper-connections
of DeepSeek-V4, Gemma 3n), the numbers of all of them, one stream after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PLAIN", "Form", "form_of", "pads_inside"]

_ORDERS = {
    "batch, seq, hidden": (0, 1, 2),
    "seq, batch, hidden": (1, 0, 2),
    "batch, seq, streams, hidden": (0, 1, 2, 3),
    "streams, batch, seq, hidden": (1, 2, 0, 3),
}
"""Axes → their order in `[batch, seq, (streams,) hidden]`."""


@dataclass(frozen=True)
class Form:
    """One arrangement.

    Attributes:
        axes: a key of the table above.
        streams: residual streams of a token.
        padded: whether the model may pad its rows inside, on the right (Longformer, to its window).
    """

    axes: str = "batch, seq, hidden"
    streams: int = 1
    padded: bool = False

    def states(self, tensor: Tensor, length: int) -> Tensor:
        """`[batch, seq, streams · hidden]` of a tensor in this form.

        Args:
            tensor: in this form.
            length: tokens of a row, as the model was called.
        """
        ordered = tensor if self.axes == PLAIN.axes else tensor.permute(_ORDERS[self.axes])
        states = ordered.flatten(2) if ordered.dim() == 4 else ordered
        return states[:, :length] if self.padded else states

    def put_back(self, states: Tensor, tensor: Tensor) -> Tensor:
        """The tensor with other states, `[batch, seq, streams · hidden]`; what the model padded stays."""
        if self.padded and tensor.shape[1] != states.shape[1]:
            states = torch.cat([states, tensor[:, states.shape[1] :]], 1)
        if self.axes == PLAIN.axes:
            return states
        order = _ORDERS[self.axes]
        if len(order) == 4:
            states = states.reshape(*states.shape[:2], self.streams, -1)
        back = [order.index(axis) for axis in range(len(order))]
        return states.permute(back)

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has the axes of this form."""
        return tensor.dim() == len(_ORDERS[self.axes])


PLAIN = Form()


def form_of(shape: torch.Size, batch: int, length: int, *, padded: bool) -> Form | None:
    """The form of a tensor's shape in a call of `batch` rows of `length` tokens; None if no rule knows it.

    Args:
        shape: of the tensor.
        batch, length: they differ, or two rules may know it.
        padded: whether the model pads its rows inside.
    """
    for axes, order in _ORDERS.items():
        if len(shape) != len(order):
            continue
        found = [shape[axis] for axis in order]
        longer = padded and axes == PLAIN.axes and found[1] > length
        if found[0] == batch and (found[1] == length or longer):
            return Form(axes, found[2] if len(found) == 4 else 1, padded and axes == PLAIN.axes)
    if len(shape) == 2 and shape[0] == batch * length:  # OPT's feed-forward part
        return PLAIN
    return None


def pads_inside(model: nn.Module, path: str) -> bool:
    """Whether a module around a path pads the rows to a multiple of its window, as transformers' models name it."""
    module: Any = model
    for part in path.split("."):
        kind: Any = type(module)
        if _pads(kind):
            return True
        module = getattr(module, part)
    return False


@cache
def _pads(kind: Any) -> bool:
    return any(name.startswith("_pad_to_") for name in dir(kind))
