"""Edits at a site: zero, mean, noise, add, subtract, put, and the swap of an interchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, SiteError

from .site import Site
from .views import View

__all__ = [
    "Change",
    "Edit",
    "add",
    "apply_edit",
    "coordinates_of",
    "mean",
    "noise",
    "put",
    "subtract",
    "units_of",
    "zero",
]

Change = Callable[[Tensor], Tensor]
"""The chosen coordinates → what they become: `[batch, …, width]`, of the same shape."""


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens at a site: `zero`, `mean`, `noise`, `add`, `subtract`, `put`, or with a function of one's own.

    Args:
        site: where.
        change: the chosen coordinates `[batch, …, width]` → what they become; None for a swap.
        source: the vectors of a source's run, for `interchange`.
        combine: (base's coordinates, source's) → new ones; None for a swap.

    Raises:
        SiteError: `site` is no `Site`.
    """

    site: Site
    change: Change | None = None
    source: View | None = None
    combine: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.site, Site):
            kind = type(self.site).__name__
            raise SiteError(f"an edit at a {kind}", value=kind, rule="an edit is at a Site", fix="Site(layer=…)")


def zero(site: Site) -> Edit:
    """Set the coordinates to 0.

    Args:
        site: where.

    Returns:
        The edit, for `intervene`.
    """
    return Edit(site, torch.zeros_like)


def put(site: Site, value: Tensor) -> Edit:
    """Set the coordinates to a value.

    Args:
        site: where.
        value: `[width]`, or any shape that fits the coordinates `[batch, k, width]`, e.g. from `collect`.

    Returns:
        The edit, for `intervene`.
    """
    return Edit(site, lambda held: _fit(value, held, site))


def mean(site: Site, values: Tensor) -> Edit:
    """Set the coordinates to the mean of collected ones, over their first dimension (mean ablation).

    Args:
        site: where.
        values: `[n, …, width]`, from `collect` at the same site.

    Returns:
        The edit, for `intervene`.

    Raises:
        SiteError: values that are no collected ones.
    """
    if values.dim() < 2 or not len(values):
        raise SiteError(
            f"{site.describe()}: the mean of values of shape {list(values.shape)}",
            value=list(values.shape),
            rule="they are collected ones, [n, …, width]; the mean is over the first dimension",
        )
    return put(site, values.float().mean(0))


def add(site: Site, value: Tensor) -> Edit:
    """Add a value to the coordinates.

    Args:
        site: where.
        value: `[width]`, or any shape that fits the coordinates `[batch, k, width]`, e.g. from `collect`.

    Returns:
        The edit, for `intervene`.
    """
    return Edit(site, lambda held: held + _fit(value, held, site))


def subtract(site: Site, value: Tensor) -> Edit:
    """Subtract a value from the coordinates.

    Args:
        site: where.
        value: `[width]`, or any shape that fits the coordinates `[batch, k, width]`, e.g. from `collect`.

    Returns:
        The edit, for `intervene`.
    """
    return Edit(site, lambda held: held - _fit(value, held, site))


def noise(site: Site, std: float, *, seed: int) -> Edit:
    """Add Gaussian noise to the coordinates, from a generator of its own: the same at each run.

    Args:
        site: where.
        std: of the noise, in the coordinates' units.
        seed: of the generator.

    Returns:
        The edit, for `intervene`.

    Raises:
        SiteError: a std that is negative or not finite.
    """
    if not 0 <= std < float("inf"):
        raise SiteError(f"{site.describe()}: noise of std {std}", value=std, rule="it is a finite number, 0 or more")

    def change(held: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(held.shape, generator=generator, dtype=torch.float32)
        return held + std * drawn.to(held.device, held.dtype)

    return Edit(site, change)


def apply_edit(edit: Edit, view: View) -> Tensor:
    """The rows `[n, width]` after an edit, in the dtype they had; where nothing changes they keep their bits."""
    site, rows = edit.site, view.rows
    with torch.autocast(rows.device.type, enabled=False):
        work = rows.to(torch.promote_types(rows.dtype, torch.float32))
        source = None if edit.source is None else _matching(edit.source, view, site).to(work.device, work.dtype)
        units = units_of(site, coordinates_of(site, work[:0]))
        weight = _weight(site, view, work)
        if edit.change is None and edit.combine is None:
            if source is None:
                raise SiteError(f"{site.describe()}: an edit without a change", rule="it has a change or a source")
            edited = _swap(site, work, source, units, weight)
        else:
            edited = _changed(edit, view, work, source, units, weight)
        return edited.to(rows.dtype)


def _swap(site: Site, rows: Tensor, source: Tensor, units: Tensor | None, weight: Tensor | None) -> Tensor:
    """h with the chosen coordinates of s: exact for neurons, h − (Rᵀ(w ⊙ R(h − s)) + 0) in a space."""
    if site.space is None:
        if weight is not None and weight.dtype == torch.bool:
            return torch.where(weight, source, rows)
        if weight is not None:
            return rows - (weight * (rows - source) + 0.0)
        return source if units is None else rows.index_copy(1, units, source.index_select(1, units))
    difference = site.space.difference(rows, source)
    if units is not None:
        difference = torch.zeros_like(difference).index_copy(1, units, difference.index_select(1, units))
    if weight is not None:
        difference = difference * weight
    return site.space.write(rows, site.space.encode(rows), difference)


def _changed(
    edit: Edit, view: View, rows: Tensor, source: Tensor | None, units: Tensor | None, weight: Tensor | None
) -> Tensor:
    space = edit.site.space
    features = coordinates_of(edit.site, rows)
    held = features if units is None else features.index_select(1, units)
    shaped = held.reshape(*view.shape, -1)
    if source is not None and edit.combine is not None:
        given = source if space is None else space.encode(source)
        given = given if units is None else given.index_select(1, units)
        new = edit.combine(shaped, given.reshape(shaped.shape))
    else:
        new = edit.change(shaped) if edit.change is not None else shaped
    if new.shape != shaped.shape:
        raise SiteError(
            f"{edit.site.describe()}: the change gave shape {list(new.shape)}",
            value=list(new.shape),
            rule=f"it keeps the shape {list(shaped.shape)}",
        )
    new = new.reshape(held.shape).to(features.dtype)
    if space is None and weight is None:
        return new if units is None else features.index_copy(1, units, new)
    change = held - new if units is None else torch.zeros_like(features).index_copy(1, units, held - new)
    if weight is not None:
        change = change * weight
    return rows - (change + 0.0) if space is None else space.write(rows, features, change)


def coordinates_of(site: Site, rows: Tensor) -> Tensor:
    """`[n, width]` of rows `[n, hidden]`; in a space float32 at least.

    Raises:
        SiteError: a space of another hidden size.
    """
    if site.space is None:
        return rows
    if site.space.hidden not in (None, rows.shape[1]):
        raise SiteError(
            f"{site.describe()}: vectors there have size {rows.shape[1]}",
            value=rows.shape[1],
            rule=f"the space is one of vectors of size {site.space.hidden}",
        )
    with torch.autocast(rows.device.type, enabled=False):
        return site.space.encode(rows.to(torch.promote_types(rows.dtype, torch.float32)))


def units_of(site: Site, features: Tensor) -> Tensor | None:
    """The site's units, long `[units]`; None: all of the features `[n, width]`.

    Raises:
        SiteError: a unit that is none of them.
    """
    if site.units is None:
        return None
    width = features.shape[1]
    wrong = [unit for unit in site.units if not 0 <= unit < width]
    if wrong:
        raise SiteError(
            f"{site.describe()}: there is no unit {wrong[0]}",
            value=wrong[0],
            rule=f"there are {width}: 0 to {width - 1}",
        )
    return torch.tensor(list(site.units), device=features.device)


def _weight(site: Site, view: View, rows: Tensor) -> Tensor | None:
    if site.mask is None:
        return None
    mask = site.mask.to(view.rows.device)
    width = coordinates_of(site, rows[:0]).shape[1]
    if mask.dim() not in (1, 2) or mask.shape[-1] != width or (mask.dim() == 2 and len(mask) <= int(view.owner.max())):
        raise SiteError(
            f"{site.describe()}: a mask of shape {list(mask.shape)}",
            value=list(mask.shape),
            rule=f"it is [{width}], or [batch, {width}]",
        )
    return mask if mask.dim() == 1 else mask.index_select(0, view.owner)


def _matching(source: View, base: View, site: Site) -> Tensor:
    if source.rows.shape != base.rows.shape or not torch.equal(source.owner, base.owner):
        raise LocationError(
            f"{site.describe()}: base has vectors of shape {[*base.shape, base.rows.shape[-1]]}, the source "
            f"{[*source.shape, source.rows.shape[-1]]}",
            value=list(source.shape),
            rule="each row of the source gives as many vectors as its row of the base takes",
            fix="batch base and source alike, and name positions that both have",
        )
    return source.rows


def _fit(value: Any, held: Tensor, site: Site) -> Tensor:
    try:
        fitted: Tensor = torch.as_tensor(value).to(held.device, held.dtype).expand_as(held)
    except RuntimeError as error:
        raise SiteError(
            f"{site.describe()}: a value of shape {list(torch.as_tensor(value).shape)}",
            value=list(torch.as_tensor(value).shape),
            rule=f"it fits the coordinates there, {list(held.shape)}",
        ) from error
    return fitted
