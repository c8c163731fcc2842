"""The hot path of an affine edit: its rows are read, edited in two thin products, and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .edit import is_autocast
from .frames import Frame, Products, Ready
from .window import HELD_BYTES, Room, workspace_for

__all__ = ["edit_affine", "edit_window"]

_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
"""One look for all devices; without it each is asked."""


def edit_affine(hidden: Tensor, ready: Ready, *, in_place: bool = False) -> Tensor:
    """h′ = h + (h A + c) B at the planned rows, computed in the dtype of A, B and c and rounded once.

    Args:
        hidden: h `[batch, seq, hidden]`.
        ready: the rows, and A, c and B.
        in_place: whether the rows may be written into `hidden`.

    Returns:
        h′, a new tensor of the same shape and dtype, or `hidden`; rows outside the plan keep their bits.
    """
    # autocast leaves products in float64 alone, and the writing of float32
    plain = hidden.dtype is torch.float32 and ready.products.down.dtype is torch.float64
    if not plain and _any_autocast() and is_autocast(device := hidden.device.type):
        with torch.autocast(device, enabled=False):
            return _edited(hidden, ready, in_place)
    return _edited(hidden, ready, in_place)


def edit_window(hidden: Tensor, room: Room, products: Products, frame: Frame) -> None:
    """The same in place, where a view of h shows the planned rows; casts are part of reading and of writing it.

    Autocast changes nothing of it: it leaves products alone that are written into a tensor.

    Args:
        hidden: h `[batch, seq, hidden]`, of which no gradients are needed.
        room: of the edit.
        products: A, c and B.
        frame: of the forward that runs.
    """
    held = frame.workspace
    if held is None or held.room is not room:
        held = workspace_for(room)
        frame.workspace = held if held.rows.nbytes <= HELD_BYTES else None
    (sizes, strides, start), rows = room.window, held.rows
    view = hidden.as_strided(sizes, strides, hidden.storage_offset() + start)
    held.seen.copy_(view)
    rows.addmm_(held.inner.copy_(products.bias).addmm_(rows, products.down), products.up)
    view.copy_(held.seen)


def _edited(hidden: Tensor, ready: Ready, in_place: bool) -> Tensor:
    down, bias, up, source = ready.products
    if ready.learns(hidden):
        edited: Tensor = _apply(hidden, ready.rows, ready.used, down, bias, up, source, in_place)[0]
        return edited
    flat = hidden.reshape(-1, hidden.shape[-1])
    total = _rows(flat, ready.rows, ready.used, down, bias, up)[0]
    if in_place:
        flat.index_copy_(0, ready.rows, total)
        return hidden
    return flat.index_copy(0, ready.rows, total).view(hidden.shape)


def _rows(
    flat: Tensor, rows: Tensor, used: Tensor | None, down: Tensor, bias: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The edited rows of h `[batch · seq, hidden]`, the rows that were gathered of it, and their h A + c."""
    picked = flat.index_select(0, rows)
    work = picked if picked.dtype is down.dtype else picked.to(dtype=down.dtype)  # a keyword: a device is tried first
    inner = torch.addmm(bias, work, down)
    if used is None and work is not picked:
        total = work.addmm_(inner, up)
    else:
        total = torch.addmm(work, inner, up)
        total = total if used is None else torch.where(used, total, work)
    return total if total.dtype is flat.dtype else total.to(dtype=flat.dtype), picked, inner


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
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        flat = hidden.reshape(-1, hidden.shape[-1])
        total, picked, inner = _rows(flat, rows, used, down, bias, up)
        ctx.shape = hidden.shape
        ctx.save_for_backward(rows, used, down, bias, up, source, picked, inner)
        ctx.set_materialize_grads(False)
        if in_place:
            ctx.mark_dirty(hidden)
            flat.index_copy_(0, rows, total)
            return hidden, picked
        edited = hidden.clone(memory_format=torch.contiguous_format)  # no view of the rows, of which FSDP2 warns
        edited.view(flat.shape).index_copy_(0, rows, total)
        return edited, picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_picked: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, used, down, bias, up, source, picked, inner = ctx.saved_tensors
        given, source = source, down.mT if source is None else source
        if grad is None:  # of a backward pass that goes on through the rows alone
            if grad_picked is None:
                return (None,) * 8
            grad = grad_picked.new_zeros(ctx.shape)
        flat = grad.reshape(-1, grad.shape[-1])
        here = flat.index_select(0, rows).to(down.dtype)
        delta = here if used is None else torch.where(used, here, 0.0)
        of_inner = delta.mm(up.mT)
        of_hidden, of_bias, of_up, of_source = None, None, None, None
        if any(ctx.needs_input_grad[4:]):
            work = picked.to(down.dtype)
            if torch.is_grad_enabled():
                inner = torch.addmm(bias, work, source.mT)  # what is saved does not know what it depends on
            of_bias, of_up = of_inner.sum(0), inner.mT.mm(delta)
            of_source = None if given is None else of_inner.mT.mm(work)  # frozen, beside a bias or rows that learn
        if ctx.needs_input_grad[0]:
            of_rows = torch.addmm(here, of_inner, source).to(grad.dtype)
            of_rows = of_rows if grad_picked is None else of_rows + grad_picked
            of_hidden = flat.index_copy(0, rows, of_rows).view(grad.shape)
        return of_hidden, None, None, None, of_bias, of_up, of_source, None


_apply: Callable[..., Any] = super(torch.autograd.Function, _AffineRows).apply
"""What `Function.apply` calls where no transform of `torch.func` runs: none does where edits are made in one step."""
