"""The vectors of an activation that a site means: taken out as rows, put back into a copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, SiteError
from peft_reft.sites import with_slice

from .columns import columns_at, real_tokens
from .inputs import named
from .site import Address, Site

__all__ = ["View", "view_of"]


@dataclass(frozen=True)
class View:
    """Rows of one activation.

    Attributes:
        rows: `[n, width]`, in the order of batch and positions.
        shape: what n stands for: `(batch,)`, `(batch, k)`, or `(n,)` where rows of the batch have different counts.
        owner: long `[n]`, the row of the batch that each belongs to.
        index: long `[m]`, where in the flattened activation they are; None for all of it.
    """

    rows: Tensor
    shape: tuple[int, ...]
    owner: Tensor
    index: Tensor | None
    address: Address
    tensor: Tensor

    @property
    def whole(self) -> Tensor:
        """The tensor, or the slice of it, that the rows are from."""
        return self.tensor[..., self.address.tap.start : self.address.tap.stop]

    def _unscaled(self, rows: Tensor) -> Tensor:
        """Rows as the module gives them, before the block multiplies them."""
        return rows if self.address.tap.factor == 1.0 else rows / self.address.tap.factor

    def kept(self) -> View:
        """The same with rows of its own, which what the model does in place later does not change."""
        return self if self.index is not None else replace(self, rows=self.rows.clone())

    def put(self, rows: Tensor) -> Tensor:
        """A copy of the activation with these rows in place of its own."""
        part, rows = self.whole, self._unscaled(rows)
        width = part.shape[-1]
        if self.index is None:
            part = rows.reshape(part.shape).clone()  # what is done in place later is not done to a source
        else:
            part = part.reshape(-1, width).index_copy(0, self.index, rows.reshape(-1, width)).view_as(part)
        return part if self.address.tap.width is None else with_slice(self.tensor, self.address.tap, part)

    def overlaps(self, other: View) -> bool:
        """Whether some vector belongs to both; both are of one activation."""
        if self.index is None or other.index is None:
            return True
        return bool(torch.isin(self.index, other.index).any())


def view_of(site: Site, address: Address, tensor: Tensor, inputs: Any) -> View:
    """The rows that a site means in an activation.

    Args:
        site, address: the site, found in the model.
        tensor: the activation, `[batch, …, hidden]`.
        inputs: what the model is called with, for masks and positions.

    Raises:
        SiteError, LocationError, PositionError: positions that this activation does not have.
    """
    part = tensor[..., address.tap.start : address.tap.stop]
    if address.tap.factor != 1.0:
        part = part * address.tap.factor
    batch = part.shape[0]
    if site.position is None:
        flat = part.reshape(batch, -1) if site.joint else part.reshape(-1, part.shape[-1])
        owner = torch.arange(batch, device=part.device).repeat_interleave(flat.shape[0] // max(batch, 1))
        return View(flat, (batch,) if site.joint else tuple(part.shape[:-1]), owner, None, address, tensor)
    batch, length = _sequence_shape(site, part, inputs)
    real = real_tokens(inputs, batch, length, role=address.role, device=part.device)
    columns = columns_at(site.position, inputs, real, role=address.role, completes=address.completes)
    ordered = columns.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise LocationError(f"position={site.position!r} names a token of some row twice", value=site.position)
    named_ = columns >= 0
    rows = torch.arange(batch, device=part.device)[:, None].expand_as(columns)
    index = (rows * length + columns)[named_]
    even = bool(named_.all())
    found = part.reshape(batch * length, -1).index_select(0, index)
    if not site.joint:
        return View(found, tuple(columns.shape) if even else (len(index),), rows[named_], index, address, tensor)
    if not even:
        raise LocationError(
            f"{site.describe()}: rows have different numbers of positions",
            value=site.position,
            rule="joint=True takes the same number of vectors from each row",
        )
    return View(found.reshape(batch, -1), (batch,), rows[:, 0], index, address, tensor)


def _sequence_shape(site: Site, part: Tensor, inputs: Any) -> tuple[int, int]:
    """(batch, length) of an activation with positions; some modules see it flattened to `[batch · seq, hidden]`."""
    if part.dim() == 3:
        return part.shape[0], part.shape[1]
    ids = named(inputs).get("input_ids", inputs if isinstance(inputs, Tensor) else None)
    if part.dim() == 2 and isinstance(ids, Tensor) and ids.dim() == 2 and ids.numel() == part.shape[0]:
        return ids.shape[0], ids.shape[1]
    raise SiteError(
        f"{site.describe()}: the activation has shape {list(part.shape)}",
        code="site.shape",
        value=list(part.shape),
        rule="positions are those of a sequence: [batch, seq, hidden]",
        fix="leave position out to take the whole activation",
    )
