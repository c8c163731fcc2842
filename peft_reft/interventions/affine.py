"""An edit that is affine in h and of low rank: the matrices of the two thin products that compute it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Affine"]


class Affine(NamedTuple):
    """delta(h) = Pᵀ(Mh + c), of one unit or stacked over several.

    Attributes:
        source: M `[..., rank, hidden]`.
        bias: c `[..., rank]`.
        projection: P `[..., rank, hidden]`.
    """

    source: Tensor
    bias: Tensor
    projection: Tensor
