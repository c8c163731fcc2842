"""R ↔ the pair that torch's `parametrizations.orthogonal` saves, as pyreft and adapters write it.

The pair is `original` X `[n, r]` and `base` B `[n, n]`; R's columns are B · H(X), where H is the product of the
Householder reflections below X's diagonal times that diagonal as signs, or for r = n the matrix exponential of X's
skew part (torch/nn/utils/parametrizations.py, `_Orthogonal`).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pair_from_rotation", "rotation_from_pair"]


def rotation_from_pair(original: Tensor, base: Tensor) -> Tensor:
    """R's columns `[n, r]`, float32 at least, from X `[n, r]` and B `[n, n]`."""
    dtype = torch.promote_types(original.dtype, torch.float32)
    raw, base = original.to(dtype), base.to(dtype)
    factor: Tensor
    if raw.shape[0] == raw.shape[1]:
        lower = raw.tril()
        factor = torch.matrix_exp(lower - lower.mT)
        return base @ factor
    reflectors = raw.tril(diagonal=-1)
    tau = 2.0 / (1.0 + (reflectors * reflectors).sum(dim=-2))
    factor = torch.linalg.householder_product(reflectors, tau)
    return base @ (factor * raw.diagonal(dim1=-2, dim2=-1).int().unsqueeze(-2))


def pair_from_rotation(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(X, B) whose R has the given orthonormal columns `[n, r]`: X = −I, B an orthonormal completion."""
    size, rank = columns.shape
    full, triangle = torch.linalg.qr(columns.double(), mode="complete")
    signs = torch.ones(size, dtype=torch.float64)
    signs[:rank] = triangle.diagonal().sign()
    completion = (full * signs).to(columns.dtype)
    completion[:, :rank] = columns
    return -torch.eye(size, rank, dtype=columns.dtype), completion
