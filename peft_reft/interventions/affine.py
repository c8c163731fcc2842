"""An edit that is affine in h and of low rank, as the two thin products that compute it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Affine", "affine_of"]


class Affine(NamedTuple):
    """delta(h) = (h A + c) B, of one unit or stacked over several.

    Attributes:
        down: A `[..., hidden, rank]`.
        bias: c `[..., rank]`.
        up: B `[..., rank, hidden]`.
    """

    down: Tensor
    bias: Tensor
    up: Tensor


def affine_of(source: Tensor, bias: Tensor, projection: Tensor) -> Affine:
    """Pᵀ(Mh + b) for M and P `[..., rank, hidden]` and b `[..., rank]`."""
    return Affine(source.mT, bias, projection)
