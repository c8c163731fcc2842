"""Rows that lie in a regular pattern, such as the first and last tokens of prompts of one length: a view shows them.

A view is read and written in one step each, with the cast in it, where gathered rows take two.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

__all__ = ["Window", "window_of"]

Window: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]
"""Sizes, strides and start, as `Tensor.as_strided` takes them; the start counts from the tensor's own."""
AXES = 3
"""Of a pattern at most: batch, parts of a prompt, tokens."""


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
    return tuple(sizes), tuple(strides), first * hidden
