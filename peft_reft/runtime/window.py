"""Rows that lie in a regular pattern, such as the first and last tokens of prompts of one length: a view shows them.

A view is read and written in one step each, with the cast in it, where gathered rows take two. What is computed of it
lies in memory that the edits of a forward use one after the other.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Room", "Window", "Workspace", "window_of", "workspace_for"]


class Window(NamedTuple):
    """A view, as `Tensor.as_strided` takes it.

    Attributes:
        sizes: `[…, hidden]`.
        strides: of each axis.
        start: counts from the tensor's own.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


class Room(NamedTuple):
    """What an edit of a window needs memory for; sites whose edits are alike share one.

    Attributes:
        window: the rows that are edited.
        rank: of the edit.
        dtype: in which it is computed.
    """

    window: Window
    rank: int
    dtype: torch.dtype


class Workspace(NamedTuple):
    """Memory for the edits of one room, which each of them fills anew.

    Attributes:
        room: for which it was made.
        seen: what the window shows, `[…, hidden]`.
        rows: the same `[n, hidden]`.
        inner: `[n, rank]`.
    """

    room: Room
    seen: Tensor
    rows: Tensor
    inner: Tensor


def workspace_for(room: Room) -> Workspace:
    """Memory for the edits of a room, on the CPU; none of inference mode, which a block may leave."""
    sizes = room.window.sizes
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        rows = torch.empty(math.prod(sizes[:-1]), sizes[-1], dtype=room.dtype, device="cpu")
        return Workspace(room, rows.view(sizes), rows, rows.new_empty(len(rows), room.rank))


AXES = 3
"""Of a pattern at most: batch, parts of a prompt, tokens."""
HELD_BYTES = 1 << 22
"""A forward holds a workspace up to this size: of more, the memory costs more than making it for each edit."""


def window_of(rows: Tensor, hidden: int) -> Window | None:
    """The view of a contiguous tensor that shows these of its rows, in their order.

    Args:
        rows: long `[n]`, on the CPU: they are looked at.
        hidden: size of a row.

    Returns:
        A view of sizes `[…, hidden]`; None where the rows lie in no such pattern.
    """
    starts: list[int] = rows.tolist()
    if not starts:
        return None
    first, sizes, strides = starts[0], [hidden], [1]
    while len(starts) > 1:
        step, count = starts[1] - starts[0], 2
        while count < len(starts) and starts[count] - starts[count - 1] == step:
            count += 1
        pattern = [start - starts[0] for start in starts[:count]]
        parts = [starts[at : at + count] for at in range(0, len(starts), count)]
        if step < 1 or any([start - part[0] for start in part] != pattern for part in parts):
            return None
        sizes.insert(0, count)
        strides.insert(0, step * hidden)
        starts = starts[::count]
    if len(sizes) > AXES + 1:
        return None
    if len(sizes) == 1:  # one row
        sizes, strides = [1, hidden], [hidden, 1]
    return Window(tuple(sizes), tuple(strides), first * hidden)
