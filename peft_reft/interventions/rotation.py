"""Orthonormal rows R from a free matrix X: the map that training, evaluation and reloading share.

X = C R with C lower triangular, its diagonal positive, and R Rᵀ = I: R is the Q of the reduced QR of Xᵀ, transposed,
with the signs that make the triangular factor's diagonal positive (Golub & Van Loan, Matrix Computations, 5.2). The
rows come from two rounds of Cholesky QR in float64, for all layers in one batched call: two products and two small
triangular solves instead of a Householder factorisation per layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["orthonormal_rows"]


def orthonormal_rows(raw: Tensor, *, padded: bool = False) -> Tensor:
    """The rotation of a raw parameter.

    Args:
        raw: `[..., rank, hidden]` with rank ≤ hidden and full row rank; any floating dtype.
        padded: whether rows may be zero: these stay zero, get no gradient, and the others are as without them.

    Returns:
        `[..., rank, hidden]` with orthonormal rows, float64 for float64 input, else float32.
    """
    rows: Tensor = _OrthonormalRows.apply(raw, padded)  # type: ignore[no-untyped-call]
    return rows


class _OrthonormalRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, padded: bool) -> Tensor:
        work = raw.to(_work_dtype(raw))
        first, rows = _cholesky_rows(work, padded)
        second, rows = _cholesky_rows(rows, padded)
        ctx.save_for_backward(first @ second, rows)
        ctx.padded = padded
        ctx.raw_dtype = raw.dtype
        return rows.to(torch.float64 if raw.dtype == torch.float64 else torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # dR = C⁻¹ dX (I − RᵀR) + Ω R with Ω = triu(K, 1) − triu(K, 1)ᵀ and K = C⁻¹ dX Rᵀ
        factor, rows = ctx.saved_tensors
        grad = grad.to(rows.dtype)
        if ctx.padded:
            grad = torch.where((rows == 0).all(-1, keepdim=True), 0.0, grad)
        inner = grad @ rows.mT
        inside = torch.triu(inner - inner.mT, diagonal=1) - inner
        tangent = grad + inside @ rows
        solved: Tensor = torch.linalg.solve_triangular(factor.mT, tangent, upper=True).to(ctx.raw_dtype)
        return solved, None


def _cholesky_rows(matrix: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    gram = matrix @ matrix.mT
    if padded:  # a row of zeros has the factor 1, which divides it to zeros
        gram = gram + torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) == 0).to(gram.dtype))
    factor, _ = torch.linalg.cholesky_ex(gram)
    return factor, torch.linalg.solve_triangular(factor, matrix, upper=False)


def _work_dtype(raw: Tensor) -> torch.dtype:
    return torch.float32 if raw.device.type == "mps" else torch.float64  # MPS has no float64
