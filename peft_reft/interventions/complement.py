"""An R that keeps out of directions which others have taken: the raw matrix is freed of them before it becomes R."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import COMPLEMENT

__all__ = ["COMPLEMENT", "directions", "outside"]

LEAST = 1e-4
"""Singular values of unit rows below this are of rows that depend on others."""


def outside(raw: Tensor, taken: Tensor) -> Tensor:
    """X (I − BᵀB): what of a raw matrix lies outside of the rows of B.

    R of it is orthogonal to these rows, by the same map as ever. Twice, in double precision: once leaves what the
    rounding of B's own orthonormality is (Parlett, The Symmetric Eigenvalue Problem, 6.9: twice is enough).

    Args:
        raw: X `[..., rank, hidden]`.
        taken: B `[..., k, hidden]`, rows orthonormal but for their rounding.

    Returns:
        `[..., rank, hidden]`, float64 (float32 on MPS, which has no other).
    """
    work = torch.float32 if raw.device.type == "mps" else torch.float64
    rows, left = taken.to(work), raw.to(work)
    for _ in range(2):
        left = left - (left @ rows.mT) @ rows
    return left


@torch.no_grad()
def directions(rotations: Sequence[Tensor]) -> Tensor:
    """Orthonormal rows that span the rows of several R `[rank, hidden]`; `[k, hidden]`, float32.

    k is less than the sum of ranks where rows depend on others'. The first R's rows come first, unchanged but for the
    last bits, so that nothing is lost where the R are orthogonal already.
    """
    kept: list[Tensor] = []
    for row in torch.cat([rotation.double() for rotation in rotations]):
        left = row
        for _ in range(2):
            for other in kept:
                left = left - (left @ other) * other
        if (length := left.norm()) > LEAST:
            kept.append(left / length)
    return torch.stack(kept).float()
