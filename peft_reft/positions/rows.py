"""Masks → row indices of the flattened hidden states, so that only edited rows are computed.

Rows index `hidden.reshape(batch · seq, hidden)`. Where values may be looked at, a plan holds the edited rows exactly.
Elsewhere (a device that must not be synchronised, a graph that must stay static) its width comes from the spec; unused
slots point at distinct unedited rows and belong to no unit, so that they are written back as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RowPlan", "plan_rows"]


@dataclass(frozen=True)
class RowPlan:
    """Rows to edit at a site, and which of them each unit edits.

    Attributes:
        rows: long `[n]`, distinct row indices.
        members: for each unit None (it edits all rows), long `[m]` places in `rows`, or bool `[n]`.
    """

    rows: Tensor
    members: tuple[Tensor | None, ...]


def plan_rows(masks: Sequence[Tensor], width: int | None, *, exact: bool) -> RowPlan:
    """One plan for the units that edit at one site.

    Args:
        masks: for each unit the tokens it edits, bool `[batch, seq]`; they may overlap.
        width: how many tokens of a row all units together can edit at most; None if only the values say.
        exact: whether values may be looked at.
    """
    union = masks[0] if len(masks) == 1 else torch.stack(list(masks)).any(0)
    batch, length = union.shape
    if exact:
        rows = union.reshape(-1).nonzero().squeeze(1)
        if len(masks) == 1:
            return RowPlan(rows, (None,))
        return RowPlan(rows, tuple(mask.reshape(-1)[rows].nonzero().squeeze(1) for mask in masks))
    if width is None or width >= length:
        rows = torch.arange(batch * length, device=union.device)
    else:
        # a marked column scores length − column, others 0: the marked ones come first, in order
        score = union * torch.arange(length, 0, -1, device=union.device)
        columns = score.topk(width, dim=1).indices
        rows = (columns + torch.arange(batch, device=union.device)[:, None] * length).reshape(-1)
    return RowPlan(rows, tuple(mask.reshape(-1).index_select(0, rows) for mask in masks))
