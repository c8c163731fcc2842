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
from torch.autograd import forward_ad

__all__ = ["orthonormal_rows"]


def orthonormal_rows(raw: Tensor, *, padded: bool = False) -> Tensor:
    """The rotation of a raw parameter: differentiable any number of times, backward, forward, and under `torch.func`.

    Args:
        raw: `[..., rank, hidden]` with rank ≤ hidden and full row rank; any floating dtype.
        padded: whether rows may be zero: these stay zero, get no gradient, and the others are as without them.

    Returns:
        `[..., rank, hidden]` with orthonormal rows, float64 for float64 input, else float32.
    """
    if _transformed(raw):
        return _factored(_without_zeros(raw, padded), padded)[1].to(_result_dtype(raw))
    if not raw.requires_grad or not torch.is_grad_enabled():
        return _rows(raw, padded)[-1].to(_result_dtype(raw))
    rows: Tensor = _OrthonormalRows.apply(raw, padded)  # type: ignore[no-untyped-call]
    return rows


class _OrthonormalRows(torch.autograd.Function):
    """The map with the closed form of its first derivative, which costs a fraction of going back step by step."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, padded: bool) -> Tensor:
        factor, rows = _factored(raw, padded)
        ctx.save_for_backward(raw, factor, rows)
        ctx.padded = padded
        return rows.to(_result_dtype(raw))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # dR = C⁻¹ dX (I − RᵀR) + Ω R with Ω = triu(K, 1) − triu(K, 1)ᵀ and K = C⁻¹ dX Rᵀ
        raw, factor, rows = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # what is saved does not know that it depends on X
            factor, rows = _factored(_without_zeros(raw, ctx.padded), ctx.padded)
        grad = grad.to(rows.dtype)
        if ctx.padded:
            grad = torch.where((rows == 0).all(-1, keepdim=True), 0.0, grad)
        inner = grad @ rows.mT
        inside = torch.triu(inner - inner.mT, diagonal=1) - inner
        tangent = grad + inside @ rows
        solved = torch.linalg.solve_triangular(factor.mT, tangent, upper=True).to(raw.dtype)
        return solved.contiguous(), None  # else each layer's gradient is copied into the layout of its parameter


def _factored(raw: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    """C `[..., rank, rank]` and R `[..., rank, hidden]` of X = C R, in the dtype of the work."""
    first, second, rows = _rows(raw, padded)
    return _product(first, second), rows


def _rows(raw: Tensor, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of both rounds, whose product is C, and R."""
    work = raw.to(torch.float32 if raw.device.type == "mps" else torch.float64)  # MPS has no float64
    first, rows = _cholesky_rows(work, padded)
    second, rows = _cholesky_rows(rows, padded)
    return first, second, rows


def _product(left: Tensor, right: Tensor) -> Tensor:
    """As `@`, which looks for shapes to broadcast, and takes six calls for stacked matrices where this takes one."""
    return torch.bmm(left, right) if left.dim() == 3 else left @ right


def _without_zeros(raw: Tensor, padded: bool) -> Tensor:
    """The raw matrix, its rows of zeros cut off from what they come from, so that they get no gradient."""
    return torch.where((raw == 0).all(-1, keepdim=True), 0.0, raw) if padded else raw


def _cholesky_rows(matrix: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    gram = _product(matrix, matrix.mT)
    if padded:  # a row of zeros has the factor 1, which divides it to zeros
        gram = gram + torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) == 0).to(gram.dtype))
    factor, _ = torch.linalg.cholesky_ex(gram)
    return factor, torch.linalg.solve_triangular(factor, matrix, upper=False)


def _result_dtype(raw: Tensor) -> torch.dtype:
    return torch.float64 if raw.dtype == torch.float64 else torch.float32


def _transformed(raw: Tensor) -> bool:
    """Whether a transform of `torch.func` runs, or `raw` carries a tangent of forward-mode differentiation.

    Then torch's own steps are taken: they know every transform, and a function with a `jvp` cannot be compiled.
    """
    if torch._C._are_functorch_transforms_active():  # no public name; `Function.apply` asks the same
        return True
    if torch.compiler.is_compiling():
        return False
    tangent: Tensor | None = forward_ad.unpack_dual(raw).tangent  # type: ignore[no-untyped-call]
    return tangent is not None
