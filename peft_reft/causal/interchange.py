"""`interchange`: values of source runs, put into a base run. Beside it `intervene` and `collect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

from torch import Tensor, nn

from peft_reft.hub_format.errors import CausalModelError, SiteError

from .edits import Edit, coordinates_of, units_of
from .inputs import Inputs, check_module
from .passes import run
from .site import Site
from .traces import own_cache, same_draws
from .views import View

__all__ = ["Alignment", "Combine", "collect", "interchange", "intervene"]

Alignment = Mapping[str, Site]
"""Variable → where in the network it is."""

Combine = Literal["swap", "add", "subtract"] | Callable[[Tensor, Tensor], Tensor]
"""What a base's coordinates become, given a source's: the source's own (swap), their sum, their difference, or what a
function of both gives."""

_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "swap": None,
    "add": lambda held, given: held + given,
    "subtract": lambda held, given: held - given,
}


def interchange(
    model: nn.Module,
    base: Inputs,
    sources: Inputs | Mapping[str, Inputs | None],
    sites: Site | Alignment,
    *,
    combine: Combine = "swap",
    disjoint: bool = True,
) -> Any:
    """The model's output on `base`, with what it computes at the sites on the sources in place of its own.

    One site and one source, or several by name: each variable's coordinates come from its own source, all others stay
    the base's. In a rotated space that is h − Rᵀ(R(h − s)) for every site, the distributed interchange intervention of
    arXiv 2303.02536, definition 3. A source that equals the base changes no bit, in training mode neither: dropout
    draws the same for all runs, and the global generator moves on by one run. Nor is a cache extended but by the base.

    Args:
        model: any module; it runs in the mode and under the grad mode it is called in.
        base: a batch of inputs.
        sources: a batch of the same size, or with several sites variable → batch; a variable that is left out or None
            keeps the base's values. The same object for several variables is run once.
        sites: a site, or variable → site.
        combine: see `Combine`.
        disjoint: check that sites at one place claim disjoint coordinates.

    Returns:
        Whatever the model returns.

    Raises:
        SiteError, LocationError, PositionError: a site that the model or an activation does not have, or two that
            claim the same coordinates.
        CausalModelError: a source for a variable without a site.
    """
    check_module(model)
    alignment, given = _named_sources(sources, sites)
    known = list(alignment.values())
    if (isinstance(combine, str) and combine not in _COMBINE) or not (isinstance(combine, str) or callable(combine)):
        raise SiteError(
            f"combine={combine!r}",
            value=combine,
            rule=f"it is a function of two tensors, or one of: {', '.join(_COMBINE)}",
        )
    function = _COMBINE[combine] if isinstance(combine, str) else combine
    edits = [
        Edit(alignment[name], source=view, combine=function)
        for name, view in source_views(model, given, alignment).items()
    ]
    output, _ = run(model, base, edits=edits, known=known, disjoint=disjoint)
    return output


def source_views(model: nn.Module, sources: Mapping[str, Any], alignment: Alignment) -> dict[str, View]:
    """What each source's run holds at its variable's site; one run for all variables that share a source."""
    runs: dict[int, list[str]] = {}
    for name in alignment:
        if sources.get(name) is not None:
            runs.setdefault(id(sources[name]), []).append(name)
    found: dict[str, View] = {}
    for names in runs.values():
        sites = [alignment[name] for name in names]
        with same_draws(model):
            inputs = own_cache(sources[names[0]])
            _, views = run(model, inputs, reads=sites, known=list(alignment.values()))
        found.update(zip(names, views, strict=True))
    return {name: found[name] for name in alignment if name in found}


def intervene(model: nn.Module, inputs: Inputs, edits: Edit | Sequence[Edit]) -> Any:
    """The model's output under edits: `zero`, `mean`, `noise`, `add`, `subtract`, `put`, or an `Edit` of one's own.

    Edits at one module apply one after the other, in the order given.

    Args:
        model: any module; it runs in the mode and under the grad mode it is called in.
        inputs: a batch.
        edits: an edit, or several at places that are disjoint.

    Returns:
        Whatever the model returns.

    Raises:
        SiteError: what is no edit, or a place that the model or an activation does not have.
    """
    listed = [edits] if isinstance(edits, Edit) else list(edits)
    for edit in listed:
        if not isinstance(edit, Edit):
            raise SiteError(
                f"edits hold a {type(edit).__name__}",
                value=type(edit).__name__,
                rule="an edit says a site and what happens there",
                fix="zero(site), put(site, value), …",
            )
    output, _ = run(model, inputs, edits=listed)
    return output


@overload
def collect(model: nn.Module, inputs: Inputs, sites: Site, edits: Sequence[Edit] = ()) -> Tensor: ...
@overload
def collect(model: nn.Module, inputs: Inputs, sites: Alignment, edits: Sequence[Edit] = ()) -> dict[str, Tensor]: ...
def collect(
    model: nn.Module, inputs: Inputs, sites: Site | Alignment, edits: Sequence[Edit] = ()
) -> Tensor | dict[str, Tensor]:
    """The coordinates at a site, or variable → coordinates, in one forward.

    Args:
        model: any module.
        inputs: a batch.
        sites: a site, or variable → site.
        edits: what is changed in that forward.

    Returns:
        `[batch, …, width]`: with positions `[batch, k, width]`; `[n, width]` where rows have different counts. In a
        space they are float32 at least.
    """
    if not isinstance(sites, Site):
        _check_alignment(sites)
    listed = [sites] if isinstance(sites, Site) else list(sites.values())
    _, views = run(model, inputs, edits=edits, reads=listed)
    values = [_coordinates(site, view) for site, view in zip(listed, views, strict=True)]
    return values[0] if isinstance(sites, Site) else dict(zip(sites, values, strict=True))


def _coordinates(site: Site, view: View) -> Tensor:
    features = coordinates_of(site, view.rows)
    units = units_of(site, features)
    chosen = features if units is None else features.index_select(1, units)
    return chosen.reshape(*view.shape, chosen.shape[-1])


def _named_sources(sources: Any, sites: Site | Alignment) -> tuple[Alignment, Mapping[str, Any]]:
    if isinstance(sites, Site):
        return {"source": sites}, {"source": sources}
    _check_alignment(sites)
    if not isinstance(sources, Mapping) or (unknown := [name for name in sources if name not in sites]):
        shown = type(sources).__name__ if not isinstance(sources, Mapping) else unknown[0]
        raise CausalModelError(
            f"sources: {shown!r}",
            code="causal.sources",
            value=shown,
            rule=f"with several sites, sources are variable → inputs; variables are: {', '.join(sites)}",
        )
    return sites, sources


def _check_alignment(sites: Any) -> None:
    given = list(sites.values()) if isinstance(sites, Mapping) else [sites]
    wrong = [type(site).__name__ for site in given if not isinstance(site, Site)]
    if wrong or not isinstance(sites, Mapping):
        kind = (wrong or ["Site"])[0]
        raise SiteError(f"sites hold a {kind}", value=kind, rule="a Site, or variable → Site", fix="Site(layer=…)")
