"""Where an alignment search looks: each site once with its variables, and a batch to see the sites' widths on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_reft.hub_format.errors import CausalModelError

from .dataset import Encode, InterchangeDataset
from .model import CausalModel, Values
from .rotated import RotatedSite, address_of
from .site import Site

__all__ = ["by_site", "check_searched", "probe_batch", "the_only"]


def probe_batch(causal_model: CausalModel, encode: Encode, example: Values | None) -> Any:
    """A batch of one row to see widths on: the example, or inputs of the causal model.

    Raises:
        CausalModelError: there is no example, and the model's inputs are not what `encode` takes, or may be any.
    """
    if example is not None:
        return encode([example])
    inputs = causal_model.sample_inputs(1, seed=0)
    try:
        return encode(inputs)
    except Exception as error:
        raise CausalModelError(
            f"encode failed on inputs of the causal model: {error}",
            code="causal.encode",
            value=inputs[0],
            rule="without example, the sites' widths are looked at on such inputs",
            fix="give it a row as encode takes them, e.g. example=data[0]['base']",
        ) from error


def by_site(
    site: Site | Mapping[str, Site], variables: Mapping[str, int] | Sequence[str]
) -> list[tuple[Site, Mapping[str, int] | list[str]]]:
    """Each site once, with its variables.

    Raises:
        CausalModelError: a variable without a site, or a site of none.
    """
    if isinstance(site, Mapping) and set(site) != set(variables):
        raise CausalModelError(
            f"sites of {', '.join(site)}",
            code="causal.sites",
            value=sorted(site),
            rule=f"one for each variable: {', '.join(variables)}",
        )
    groups: dict[tuple[Any, ...], tuple[Site, list[str]]] = {}
    for name in variables:
        where = site[name] if isinstance(site, Mapping) else site
        groups.setdefault(address_of(where), (where, []))[1].append(name)
    return [
        (where, {name: variables[name] for name in names} if isinstance(variables, Mapping) else names)
        for where, names in groups.values()
    ]


def check_searched(data: InterchangeDataset, variables: Sequence[str]) -> None:
    """Refuse pairs that exchange a variable which is not searched.

    Raises:
        CausalModelError: see above.
    """
    unknown = sorted(set(data.variables) - set(variables))
    if unknown:
        raise CausalModelError(
            f"{len(data)} pairs with the unknown variables {unknown}",
            code="causal.pairs",
            value=unknown,
            rule=f"pairs exchange the variables searched: {', '.join(variables)}",
        )


def the_only(places: Sequence[RotatedSite]) -> RotatedSite:
    """The one site of a search.

    Raises:
        CausalModelError: there are several.
    """
    if len(places) > 1:
        raise CausalModelError(
            f"the variables are at {len(places)} sites",
            code="causal.sites",
            value=len(places),
            rule="each has a rotation of its own",
            fix="take rotations, or alignment",
        )
    return places[0]
