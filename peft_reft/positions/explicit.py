"""Positions that the caller states: `intervention_locations` → masks, after their checks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError

from .doubts import AT_ONCE, Doubts
from .reading import first_where

__all__ = ["location_masks"]


def location_masks(locations: Tensor, real: Tensor, *, terms: int, doubts: Doubts | None = AT_ONCE) -> list[Tensor]:
    """One bool `[batch, seq]` mask per term, disjoint: a token belongs to the first term that names it.

    Args:
        locations: integer `[batch, terms, k]`, indices among the row's columns; −1 is none.
        real: bool `[batch, seq]`.
        terms: how many the adapter has: 1 per tied group, else one per term of the spec.
        doubts: where values are looked at; None while compiling.

    Raises:
        LocationError: wrong dtype or shape, an index out of range or on padding.
    """
    batch, width = real.shape
    if not isinstance(locations, Tensor) or locations.dtype not in (torch.int64, torch.int32):
        kind = locations.dtype if isinstance(locations, Tensor) else type(locations).__name__
        raise _refuse(f"is a {kind}", "it is a LongTensor [batch, terms, k]")
    if locations.dim() != 3 or locations.shape[0] != batch or locations.shape[1] != terms:
        raise _refuse(
            f"has shape {list(locations.shape)}",
            f"it is [batch, terms, k] = [{batch}, {terms}, k]: terms is 1 if tied, else one per term of the positions",
        )
    locations = locations.to(real.device, torch.long)
    named = locations >= 0
    outside = (locations < -1) | (locations >= width)
    columns = locations.clamp(0, width - 1)
    if doubts is not None:
        doubts.refuse_where(outside, partial(_outside, width), outside, locations)
        padding = named & ~real[:, None, :].expand(-1, terms, -1).gather(2, columns)
        doubts.refuse_where(padding, _on_padding)
    counts = torch.zeros(batch, terms, width, dtype=torch.long, device=real.device)
    hits = counts.scatter_add(2, columns, named.long()) > 0
    taken = torch.zeros_like(real)
    masks = []
    for term in range(terms):
        masks.append(hits[:, term] & ~taken & real)
        taken = taken | hits[:, term]
    return masks


def _outside(width: int, outside: Tensor, locations: Tensor) -> LocationError:
    wrong, _ = first_where(outside, locations)
    return _refuse(f"names column {wrong}", f"columns run from 0 to {width - 1}, and −1 means none")


def _on_padding() -> LocationError:
    return _refuse("names a column of padding", "only real tokens are edited", "shift the indices by the padding")


def _refuse(what: str, rule: str, fix: str | None = None) -> LocationError:
    return LocationError(f"intervention_locations {what}", value=what, rule=rule, fix=fix)
