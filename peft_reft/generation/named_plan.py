"""A packed forward whose requests name their adapters: who edits in it, and which of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from peft_reft.runtime.plan import StackPlan
from peft_reft.runtime.situation import Situation, UnitKey, UnitMask
from peft_reft.runtime.views import AdapterView

from .requests import Batch, Request

__all__ = ["editing", "plan_named"]


def editing(batch: Batch, views: Mapping[str, AdapterView], active: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the adapters that can edit a token of this forward; None where no request names any.

    Args:
        batch: of the forward.
        views: of all adapters.
        active: of those that edit requests which name none.
    """
    if all(request.names is None for request in batch.requests):
        return None
    found = {
        name
        for request in batch.requests
        for name in _names(request, active)
        if views[name].touches_generated or request.past < request.prompt
    }
    return tuple(name for name in views if name in found)


def plan_named(
    batch: Batch, views: Sequence[AdapterView], active: Sequence[str], situation: Situation
) -> StackPlan | None:
    """What a stack edits in this forward; None where that is nothing.

    Adapters whose positions read alike are resolved together, so the work does not grow with their number.

    Args:
        batch: of the forward.
        views: of the adapters that edit in it.
        active: of those that edit requests which name none.
        situation: of the stack.
    """
    alike: dict[object, list[int]] = {}
    for place, view in enumerate(views):
        alike.setdefault(_reading(view), []).append(place)
    masks: dict[UnitKey, UnitMask] = {}
    past = 0
    for places in alike.values():
        named = {views[place].name for place in places}
        chosen = tuple(request for request in batch.requests if not named.isdisjoint(_names(request, active)))
        plan = replace(batch, requests=chosen).plan([views[places[0]]], situation) if chosen else None
        past = max(past, 0 if plan is None else plan.past)
        for place in places:
            masks |= _of(plan, place, views[place], batch, active)
    if not any(unit.width for unit in masks.values()):
        return None
    return StackPlan(1, batch.length, masks, past)


def _of(
    plan: StackPlan | None, place: int, view: AdapterView, batch: Batch, active: Sequence[str]
) -> dict[UnitKey, UnitMask]:
    """The masks of one adapter: of those of all that read alike, the tokens of the requests that name it."""
    mine = torch.zeros(1, batch.length, dtype=torch.bool, device=batch.device)
    if plan is None:
        nothing = UnitMask(mine, 0, torch.arange(batch.length, device=batch.device)[None])
        return {(place, unit): nothing for unit in range(view.units)}
    for request in batch.requests:
        if view.name in _names(request, active):
            mine[0, request.column : request.column + request.length] = True
    found = {}
    for (_, unit), of in plan.masks.items():
        mask = of.mask & mine
        found[place, unit] = UnitMask(mask, int(mask.sum()), of.start)
    return found


def _names(request: Request, active: Sequence[str]) -> Sequence[str]:
    return active if request.names is None else request.names


def _reading(view: AdapterView) -> object:
    """What decides which tokens an adapter edits."""
    groups = tuple((str(group.positions), group.share_weights, group.turns) for group in view.groups)
    return groups, tuple(sorted(view.token_ids.items()))
