"""The hot path: gather the edited rows, compute the edits, write the rows into a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.positions import RowPlan

__all__ = ["Edit", "apply_edits", "is_autocast"]


@dataclass(frozen=True)
class Edit:
    """One unit at work: its module, the rotation it needs, and the factor of `scale_adapter`.

    Attributes:
        unit: rows `[n, hidden]` and a rotation → their delta.
        rotation: R, for kinds that have one.
        scale: factor of the delta; a tensor `[]` in a compiled graph.
        sequence: `[n]`, the sequence of each row of the plan, for units whose edit depends on the whole sequence.
        wide: whether the delta is computed in float64 and rounded once, when it is added: products in float32
            change in their last bits with the number of rows, and a row of a batch is to equal the same row alone.
        penalty: takes the rows, and which of them are edited, for what their kind adds to the loss.
        generator: what kinds that sample draw from.
    """

    unit: Callable[..., Tensor]
    rotation: Tensor | None
    scale: float | Tensor
    sequence: Tensor | None = None
    wide: bool = False
    penalty: Callable[[Tensor, Tensor | None], None] | None = None
    generator: torch.Generator | None = None


def apply_edits(hidden: Tensor, plan: RowPlan, edits: Sequence[Edit], factor: float = 1.0) -> Tensor:
    """h with the planned rows edited; all edits are computed from the same h and added.

    Args:
        hidden: `[batch, seq, hidden]`; left as it is.
        plan: rows and the units that edit them.
        edits: one per member of the plan.
        factor: h is `factor` times what is passed: the block multiplies it before it goes on.

    Returns:
        A new tensor of the same shape and dtype; rows outside the plan keep their bits.
    """
    device = hidden.device.type
    if is_autocast(device):
        with torch.autocast(device, enabled=False):
            return _applied(hidden, plan, edits, factor)
    return _applied(hidden, plan, edits, factor)


def is_autocast(device: str) -> bool:
    """Whether products on a device would be computed in a lower precision than their operands have."""
    return device != "meta" and torch.is_autocast_enabled(device)


def _unflattened(flat: Tensor, like: Tensor) -> Tensor:
    """New rows `[batch · seq, hidden]` in the shape of `like`; no view of them, of which FSDP2 warns."""
    whole: Tensor = torch.ops.aten._unsafe_view.default(flat, like.shape)
    return whole


def _applied(hidden: Tensor, plan: RowPlan, edits: Sequence[Edit], factor: float) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = flat.index_select(0, plan.rows).to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    total, seen = rows, rows if factor == 1.0 else rows * factor
    for edit, member in zip(edits, plan.members, strict=True):
        delta = _placed(seen, member, edit)
        total = total + (delta if factor == 1.0 else delta / factor)
    return _unflattened(flat.index_copy(0, plan.rows, total.to(hidden.dtype)), hidden)


def _placed(rows: Tensor, member: Tensor | None, edit: Edit) -> Tensor:
    """The delta of one edit for every row of the plan; adding −0.0 where it edits nothing keeps the bits."""
    wide = rows.double() if edit.wide and rows.device.type != "mps" else rows  # MPS has no float64
    rotation = None if edit.rotation is None else edit.rotation.to(wide.dtype)
    scattered = member is not None and member.dtype == torch.long
    own = wide.index_select(0, member) if scattered and member is not None else wide
    given: dict[str, Any] = {} if edit.generator is None else {"generator": edit.generator}
    if edit.sequence is not None:
        given["sequence"] = _sequence(edit.sequence, member)
    if edit.penalty is not None:
        edit.penalty(own, None if scattered else member)
    delta = edit.unit(own, rotation, **given)
    if scattered and member is not None:
        delta = torch.full_like(wide, -0.0).index_copy(0, member, delta)
    if isinstance(edit.scale, Tensor) or edit.scale != 1.0:
        delta = delta * edit.scale
    if member is not None and member.dtype == torch.bool:
        delta = torch.where(member[:, None], delta, -0.0)
    return delta


def _sequence(sequence: Tensor, member: Tensor | None) -> Tensor:
    """The sequence of each row that a unit sees; −1 where it edits none."""
    if member is None:
        return sequence
    return sequence.index_select(0, member) if member.dtype == torch.long else torch.where(member, sequence, -1)
