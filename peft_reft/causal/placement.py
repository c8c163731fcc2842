"""A site in the words of a `ReftConfig`: layer, component, positions; and its coordinates as rows of a rotation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import SiteError
from peft_reft.hub_format.positions import parse_positions
from peft_reft.sites import COMPONENTS, find_stacks

from .site import Address, Column, Site
from .spaces import Rotation

__all__ = ["Placement", "placement_of", "rows_of"]


@dataclass(frozen=True)
class Placement:
    """Where an adapter edits.

    Attributes:
        layer, component, pattern: as in `ReftConfig`.
        positions: in the tuner's grammar.
        terms: how many terms have points of their own.
    """

    layer: int
    component: str
    pattern: str | None
    positions: str
    terms: int

    def fields(self) -> dict[str, Any]:
        """The fields of a site group."""
        return {
            "layers_to_transform": [self.layer],
            "component": self.component,
            "layers_pattern": self.pattern,
            "positions": self.positions,
            "share_weights": self.terms == 1,
        }


def placement_of(model: nn.Module, site: Site, positions: str | None = None) -> Placement:
    """Where an adapter edits what the site reads.

    Args:
        model: the network.
        site: the site.
        positions: a spec instead of the site's position.

    Raises:
        SiteError: a module that is no component of a block, a call of several, vectors taken together, or positions
            that only the inputs know.
        PositionSyntaxError: `positions` is no spec.
    """
    if site.call is not None:
        raise _refuse(site, f"call={site.call}", "an adapter edits every call of a module", "leave call out")
    if site.joint and not isinstance(site.position, int):
        raise _refuse(site, "joint=True", "an adapter edits vector by vector", "search at one position, or without it")
    layer, component, pattern = _component(model, site)
    spec, terms = _positions(site) if positions is None else (str(parse_positions(positions)), 1)
    return Placement(layer, component, pattern, spec, terms)


def rows_of(site: Site, hidden: int) -> Tensor:
    """The rows R_V `[rank, hidden]` that a site's coordinates are: of its rotation, or of the identity.

    Raises:
        SiteError: another space than a rotation, a mask with other weights than 0 and 1, no or unknown coordinates.
    """
    if site.space is not None and not isinstance(site.space, Rotation):
        name = type(site.space).__name__
        raise _refuse(site, f"space={name}", "an adapter has the orthonormal rows of a rotation", "use a Rotation")
    rows = torch.eye(hidden) if site.space is None else site.space.matrix.detach()
    units = list(range(rows.shape[0])) if site.units is None else list(site.units)
    if site.mask is not None:
        mask = site.mask.detach()
        if mask.dim() != 1 or not bool(((mask == 0) | (mask == 1)).all()):
            rule = "a coordinate is the variable's or not: 0 or 1, the same for every row of a batch"
            raise _refuse(site, "a soft mask", rule, "round the mask, or name units")
        units = mask.nonzero()[:, 0].tolist()
    if not units or not all(0 <= unit < rows.shape[0] for unit in units):
        raise _refuse(site, f"coordinates {units[:12]}", f"one or more of 0 to {rows.shape[0] - 1}", "name others")
    return rows[units]


def _component(model: nn.Module, site: Site) -> tuple[int, str, str | None]:
    """Layer, component and, where a model has several stacks, the name of the list of blocks."""
    try:
        stacks = find_stacks(model, site.layers_pattern)
    except SiteError as error:
        raise _refuse(
            site,
            f"{type(model).__name__} has no blocks that an adapter could edit ({error})",
            "an adapter of ReFT edits a component of a block, as transformers have them",
            "search in a transformer, or go on with interchange and put",
        ) from error
    address = site.address(model)
    if site.layer is not None:
        return site.layer, site.component, site.layers_pattern
    for stack in stacks:
        pattern = None if len(stacks) == 1 else stack.path.removeprefix("base_model.model.")
        for layer in range(stack.length):
            for component in COMPONENTS:
                if _same(model, Site(layer=layer, component=component, layers_pattern=stack.path), address):
                    return layer, component, pattern
    raise _refuse(
        site,
        "it is no component of a block",
        f"an adapter edits {', '.join(COMPONENTS)} of a block of {', '.join(repr(stack.path) for stack in stacks)}",
        "search at Site(layer=…, component=…)",
    )


def _same(model: nn.Module, site: Site, address: Address) -> bool:
    try:
        found = site.address(model)
    except SiteError:
        return False
    return found.path == address.path and replace(found.tap, form=address.tap.form) == address.tap


def _positions(site: Site) -> tuple[str, int]:
    """The site's position as a spec, and how many terms have points of their own."""
    position = site.position
    if isinstance(position, str):
        return str(parse_positions(position)), 1
    if isinstance(position, int):
        return _term(position), 1
    if isinstance(position, tuple) and position:
        return "+".join(map(_term, position)), len(position)
    what = f"position=Column({position.key!r})" if isinstance(position, Column) else "no position"
    rule = "each row of the inputs says it" if isinstance(position, Column) else "that is every vector there is"
    raise _refuse(site, what, f"{rule}, and an adapter has a spec", "pass positions='l1', 'prompt', 'all' or another")


def _term(position: int) -> str:
    """One token, counted as a site does; a prompt's, so what is generated is left alone."""
    if position in (0, -1):
        return "f1" if position == 0 else "l1"
    return f"p[{position}:{position + 1}]"


def _refuse(site: Site, what: str, rule: str, fix: str) -> SiteError:
    return SiteError(
        f"{site.describe()} has no form as an adapter: {what}", code="site.adapter", value=what, rule=rule, fix=fix
    )
