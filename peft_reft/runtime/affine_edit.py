"""The hot path of an affine edit: its rows are read, edited in two thin products, and written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .edit import is_autocast, unflattened
from .frames import Ready
from .window import Window

__all__ = ["edit_affine"]


def edit_affine(hidden: Tensor, ready: Ready, *, in_place: bool = False) -> Tensor:
    """h′ = h + (h A + c) B at the planned rows, computed in the dtype of A, B and c and rounded once.

    Args:
        hidden: h `[batch, seq, hidden]`.
        ready: the rows, and A, c and B.
        in_place: whether the rows may be written into `hidden`; only where no gradients are needed.

    Returns:
        h′, a new tensor of the same shape and dtype, or `hidden`; rows outside the plan keep their bits.
    """
    # autocast leaves products in float64 alone, and the writing of float32
    plain = hidden.dtype is torch.float32 and ready.products.down.dtype is torch.float64
    if not plain and is_autocast(device := hidden.device.type):
        with torch.autocast(device, enabled=False):
            return _edited(hidden, ready, in_place)
    return _edited(hidden, ready, in_place)


def _edited(hidden: Tensor, ready: Ready, in_place: bool) -> Tensor:
    down, bias, up, source = ready.products
    if source is not None or (hidden.requires_grad and torch.is_grad_enabled()):
        edited: Tensor = _AffineRows.apply(hidden, ready.rows, ready.used, down, bias, up, source)[0]  # type: ignore[no-untyped-call]
        return edited
    if in_place and ready.window is not None:
        _edit_window(hidden, ready.window, down, bias, up)
        return hidden
    flat = hidden.reshape(-1, hidden.shape[-1])
    total = _rows(flat, ready.rows, ready.used, down, bias, up)[0]
    if in_place:
        flat.index_copy_(0, ready.rows, total)
        return hidden
    return flat.index_copy(0, ready.rows, total).view(hidden.shape)


def _edit_window(hidden: Tensor, window: Window, down: Tensor, bias: Tensor, up: Tensor) -> None:
    """Edit, in place, the rows of h that a view shows; casts are part of reading and of writing it."""
    sizes, strides, start = window
    view = hidden.as_strided(sizes, strides, hidden.storage_offset() + start)
    rows = view.to(dtype=down.dtype).reshape(-1, sizes[-1])  # the view itself where neither changes anything
    view.copy_(rows.addmm_(torch.addmm(bias, rows, down), up).view(sizes))


def _rows(
    flat: Tensor, rows: Tensor, used: Tensor | None, down: Tensor, bias: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The edited rows of h `[batch · seq, hidden]`, the rows that were gathered of it, and their h A + c."""
    picked = flat.index_select(0, rows)
    work = picked.to(dtype=down.dtype)  # as a keyword: torch tries a device first
    inner = torch.addmm(bias, work, down)
    if used is None and work is not picked:
        total = work.addmm_(inner, up)
    else:
        total = torch.addmm(work, inner, up)
        total = total if used is None else torch.where(used, total, work)
    return total.to(dtype=flat.dtype), picked, inner


class _AffineRows(torch.autograd.Function):
    """The edit with its derivative in closed form, which writes one gradient of the size of h in place of three.

    The gathered rows are a second output, so that what is saved knows where it comes from: a backward pass that is
    itself differentiated (`create_graph=True`) goes on through them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        rows: Tensor,
        used: Tensor | None,
        down: Tensor,
        bias: Tensor,
        up: Tensor,
        source: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        flat = hidden.reshape(-1, hidden.shape[-1])
        total, picked, inner = _rows(flat, rows, used, down, bias, up)
        ctx.shape = hidden.shape
        ctx.save_for_backward(rows, used, down, bias, up, source, picked, inner)
        ctx.set_materialize_grads(False)
        return unflattened(flat.index_copy(0, rows, total), hidden), picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_picked: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, used, down, bias, up, source, picked, inner = ctx.saved_tensors
        given, source = source, down.mT if source is None else source
        if grad is None:  # of a backward pass that goes on through the rows alone
            if grad_picked is None:
                return (None,) * 7
            grad = grad_picked.new_zeros(ctx.shape)
        flat = grad.reshape(-1, grad.shape[-1])
        here = flat.index_select(0, rows).to(down.dtype)
        delta = here if used is None else torch.where(used, here, 0.0)
        of_inner = delta @ up.mT
        of_hidden, of_bias, of_up, of_source = None, None, None, None
        if any(ctx.needs_input_grad[4:]):
            work = picked.to(down.dtype)
            if torch.is_grad_enabled():
                inner = torch.addmm(bias, work, source.mT)  # what is saved does not know what it depends on
            of_bias, of_up = of_inner.sum(0), inner.mT @ delta
            of_source = None if given is None else of_inner.mT @ work  # frozen, beside a bias or rows that learn
        if ctx.needs_input_grad[0]:
            of_rows = torch.addmm(here, of_inner, source).to(grad.dtype)
            of_rows = of_rows if grad_picked is None else of_rows + grad_picked
            of_hidden = flat.index_copy(0, rows, of_rows).view(grad.shape)
        return of_hidden, None, None, None, of_bias, of_up, of_source
