"""Learned boundaries between variables in a rotated space (Boundless DAS, arXiv 2305.08809, section 3)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = ["boundary_masks", "boundary_units"]


def boundary_masks(shares: Tensor, width: int, temperature: float) -> list[Tensor]:
    """How much of each coordinate is each variable's: σ((k + ½ − start)/T) · σ((end − k − ½)/T); sharp at T → 0.

    Args:
        shares: `[variables]`, each one's part of the width; the variables follow one another from coordinate 0.
        width: number of coordinates.
        temperature: T, in coordinates.

    Returns:
        For each variable `[width]`, 0 to 1; the first has no lower edge.
    """
    middle = torch.arange(width, device=shares.device) + 0.5
    ends = _ends(shares, width)
    masks = []
    for index in range(len(shares)):
        mask = torch.sigmoid((ends[index] - middle) / temperature)
        if index:
            mask = mask * torch.sigmoid((middle - ends[index - 1]) / temperature)
        masks.append(mask)
    return masks


def boundary_units(shares: Tensor, width: int) -> list[range]:
    """The coordinates of each variable at T → 0: those whose middle lies between its boundaries."""
    ends = [0, *_ends(shares, width).round().long().tolist()]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _ends(shares: Tensor, width: int) -> Tensor:
    return (shares.clamp(0, 1).cumsum(0) * width).clamp(max=width)
