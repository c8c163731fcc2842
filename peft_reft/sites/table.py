"""Site groups × stacks → the list of sites: which module carries which interventions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from peft_reft.hub_format.errors import SiteError

from .components import Tap, component_places
from .parts import head_count
from .probe import check_components, probed
from .reached import check_reached
from .shapes import forms_at
from .stacks import Stack, text_config

__all__ = ["Site", "head_count_of", "site_table"]


@dataclass(frozen=True)
class Site:
    """One module where something is edited.

    Attributes:
        path: dotted name of the module.
        stack: the stack it belongs to.
        block: index of its block in the stack.
        groups: numbers of the site groups that edit here.
        taps: for each of them what of the module's call it edits.
    """

    path: str
    stack: Stack
    block: int
    groups: tuple[int, ...]
    taps: tuple[Tap, ...]


def site_table(
    model: nn.Module, groups: Iterable[tuple[Sequence[Stack], Sequence[int] | None, str]]
) -> tuple[list[Site], list[Stack]]:
    """The sites of an adapter, in the order of the forward pass, and the stacks they belong to.

    Args:
        model: the model.
        groups: for each site group its stacks (from `find_stacks`), its layers (None: all; negatives from the end)
            and its component.

    Raises:
        SiteError: a layer that a stack does not have, or a component that a block does not have, or that is not what
            it is said to be.
    """
    config = text_config(model)
    places: dict[tuple[str, int, str], list[tuple[int, Tap]]] = {}
    asked = [
        (number, stack, block, component, f"{stack.path}.{block}")
        for number, (chosen, layers, component) in enumerate(groups)
        for stack in chosen
        for block in _indices(layers, stack)
    ]
    stacks = {stack.path: stack for _, stack, *_ in asked}
    found = {(path, name): component_places(model.get_submodule(path), name, config) for _, _, _, name, path in asked}
    check_reached(model, list(stacks.values()))
    unproven = {(path, name): among for (path, name), among in found.items() if probed(name)}
    proven = check_components(model, unproven) if unproven else {}
    for number, stack, block, component, path in asked:
        place = proven.get((path, component)) or found[path, component][0]
        where = ".".join(filter(None, (path, place.path)))
        places.setdefault((stack.path, block, where), []).append((number, place.tap))
    forms = forms_at(
        model,
        {(path, tap.on_input): stacks[stack].role for (stack, _, path), units in places.items() for _, tap in units},
    )
    order = {path: place for place, path in enumerate(stacks)}
    sites = [
        Site(
            path,
            stacks[stack],
            block,
            tuple(n for n, _ in units),
            tuple(replace(tap, form=forms[path, tap.on_input]) for _, tap in units),
        )
        for (stack, block, path), units in sorted(places.items(), key=lambda item: (order[item[0][0]], *item[0][1:]))
    ]
    return sites, list(stacks.values())


def _indices(layers: Sequence[int] | None, stack: Stack) -> list[int]:
    if layers is None:
        return list(range(stack.length))
    if stack.passes is not None:
        raise SiteError(
            f"layers_to_transform={list(layers)!r}: {stack.path!r} holds {stack.length} "
            f"group{'s' if stack.length > 1 else ''} of blocks that run {stack.passes} times",
            code="site.layer",
            value=list(layers),
            rule="passes share one module, and so do its edits: they are made at every pass",
            fix="leave layers_to_transform out; to read or change one pass use peft_reft.causal with "
            f"Site(module='{stack.path}.0', call=…)",
        )
    for layer in layers:
        if not -stack.length <= layer < stack.length:
            raise SiteError(
                f"layers_to_transform={list(layers)!r}: there is no layer {layer}",
                code="site.layer",
                value=layer,
                rule=f"{stack.path!r} has {stack.length} layers: 0 to {stack.length - 1}, or -1 to -{stack.length}",
            )
    indices = sorted(layer % stack.length for layer in layers)
    if len(set(indices)) != len(indices):
        raise SiteError(
            f"layers_to_transform={list(layers)!r} names a layer twice, once counted from the end",
            code="site.layer",
            value=list(layers),
            rule=f"{stack.path!r} has {stack.length} layers",
        )
    return indices


def head_count_of(model: nn.Module, site: Site) -> int | None:
    """Number of attention heads at a site, an output projection's input; None if it cannot be told."""
    inside = site.path.removeprefix(f"{site.stack.path}.{site.block}.")
    return head_count(model.get_submodule(f"{site.stack.path}.{site.block}"), inside, text_config(model))
