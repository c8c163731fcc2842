"""Rows that are edited, each with a slot of parameters → equal pieces that share a slot: one gather, one product.

A gather per row would copy a slot's matrices once for every token of a prompt; a product per request would be a call
per request. Pieces of a fixed width are between: the matrices are copied once a piece, and all pieces are one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Even", "Segments", "cut", "even_width"]

WIDEST = 64
"""Rows of a piece at most: beyond it the copy of the matrices is small beside the product."""

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Pieces of equal width; the last places of a piece may be filler.

    Attributes:
        places: long `[pieces, width]`, the place of each among the step's rows; filler reads place 0.
        slots: long `[pieces]`, the slot whose parameters edit the piece.
        filled: long `[m]`, which of the `pieces · width` are no filler.
        targets: long `[m]`, the places of those.
    """

    places: Tensor
    slots: Tensor
    filled: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Even:
    """Pieces without filler, of rows that lie one piece after the other: nothing has to be gathered or put back.

    Attributes:
        slots: long `[pieces]`, the slot whose parameters edit the piece.
        width: rows of a piece.
    """

    slots: Tensor
    width: int


def even_width(lengths: Longs, *, widest: int = WIDEST) -> int:
    """The width of pieces that cut every run without filler; 0 where that takes many more pieces than `cut` makes.

    Args:
        lengths: long `[runs]`, rows of each.
        widest: rows of a piece at most.
    """
    common = int(np.gcd.reduce(lengths))
    width = max(size for size in range(1, min(widest, common) + 1) if common % size == 0)
    few = int((-(-lengths // _width(lengths, widest))).sum())
    return width if int(lengths.sum()) // width <= 2 * few else 0


def _width(lengths: Longs, widest: int) -> int:
    return min(widest, 1 << (int(lengths.max()) - 1).bit_length())


def cut(places: Longs, slots: Longs, device: torch.device, *, widest: int = WIDEST) -> Segments:
    """Cut runs of equal slots into pieces.

    Args:
        places: long `[m]`, of rows among those of the step.
        slots: long `[m]`, the slot that edits each.
        device: where the pieces are needed.
        widest: rows of a piece at most.
    """
    order = np.argsort(slots, kind="stable")
    places, slots = places[order], slots[order]
    starts = np.flatnonzero(np.concatenate(([True], slots[1:] != slots[:-1])))
    lengths = np.diff(np.append(starts, len(slots)))
    width = _width(lengths, widest)
    within = np.arange(len(slots)) - np.repeat(starts, lengths)
    pieces = -(-lengths // width)
    first = np.cumsum(pieces) - pieces
    filled = (np.repeat(first, lengths) + within // width) * width + within % width
    table = np.zeros(int(pieces.sum()) * width, dtype=np.int64)
    table[filled] = places
    return Segments(
        _on(table.reshape(-1, width), device),
        _on(np.repeat(slots[starts], pieces), device),
        _on(filled, device),
        _on(places, device),
    )


def _on(values: Longs, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
