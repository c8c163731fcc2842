"""What edits now: worked out when that changes, so that a forward finds it ready.

A forward reads no adapter's name. A compiled one guards on every Python value that it reads, and one graph is to serve
all adapters of one shape, whatever they are called; so units are keyed by their adapter's place among the active ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from peft_reft.hub_format.special_tokens import tokens_of
from peft_reft.interventions import has_penalty
from peft_reft.sites import Tap

from .plan import StackPlan
from .scales import Scales
from .situation import UnitKey
from .views import AdapterView

__all__ = ["Activity", "LiveUnit", "SiteLayer", "StackActivity", "activity_of"]


class SiteLayer(Protocol):
    """The interventions of all adapters at one site, as the runtime sees them.

    Attributes:
        path: of the site's module.
        stack: path of the stack that it belongs to.
        units: adapter → the numbers of its units here.
        taps: (adapter, unit) → what it edits.
        scaling: adapter → the factor of its edits.
        active_adapters: in their order.
    """

    path: str
    stack: str
    units: dict[str, tuple[int, ...]]
    taps: dict[tuple[str, int], Tap]
    scaling: Scales
    active_adapters: list[str]

    def unit(self, key: tuple[str, int]) -> Any:
        """The intervention of (adapter, unit)."""

    def edits_by(self, name: str) -> bool:
        """Whether an adapter has an intervention here, and adapters are not disabled."""


@dataclass(frozen=True)
class LiveUnit:
    """One unit at work at a site.

    Attributes:
        key: its adapter's place among those that edit the stack, and its number.
        name: of the adapter.
        module: the intervention.
        tap: what it edits.
        factor: of `scale_adapter`, float64 `[]`.
    """

    key: UnitKey
    name: str
    module: Any
    tap: Tap
    factor: Tensor


@dataclass(frozen=True)
class StackActivity:
    """The adapters that edit a stack, and what of their positions matters to every forward.

    Attributes:
        views: of the adapters; their places here are in the units' keys.
        generates: whether tokens after the prompt can be edited.
        from_end: whether the edited tokens depend on where the prompt ends.
        has_completion: whether the task of one of them has tokens after the prompt.
        needs_ids: whether the edited tokens depend on their ids.
        whole_prompts: (batch, length, device) → the plan of rows that are whole prompts; see `whole_prompts.py`.
    """

    views: tuple[AdapterView, ...] = ()
    generates: bool = False
    from_end: bool = False
    has_completion: bool = False
    needs_ids: bool = False
    whole_prompts: dict[tuple[int, int, torch.device], StackPlan] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Activity:
    """What edits a model.

    Attributes:
        stacks: path of a stack → its adapters.
        units: path of a site → its units.
        generates: whether tokens after the prompt can be edited.
        from_end: whether the edited tokens depend on where the prompt ends.
        penalized: whether the kind of one of them adds something to the loss.
        samples: whether one of them is drawn at random in training.
    """

    stacks: Mapping[str, StackActivity]
    units: Mapping[str, tuple[LiveUnit, ...]]
    generates: bool = field(init=False)
    from_end: bool = field(init=False)
    penalized: bool = field(init=False)
    samples: bool = field(init=False)

    def __post_init__(self) -> None:
        units = [one.module for members in self.units.values() for one in members]
        object.__setattr__(self, "penalized", any(map(has_penalty, units)))
        object.__setattr__(self, "samples", any(unit.samples for unit in units))
        object.__setattr__(self, "generates", any(stack.generates for stack in self.stacks.values()))
        object.__setattr__(self, "from_end", any(stack.from_end for stack in self.stacks.values()))


def activity_of(
    stacks: Iterable[str],
    layers: Mapping[str, SiteLayer],
    views: Mapping[str, AdapterView],
    has_completion: Mapping[str, bool],
    names: Iterable[str] | None = None,
) -> Activity:
    """What edits a model now.

    Args:
        stacks: paths of its stacks.
        layers: path → site.
        views: adapter → its groups.
        has_completion: adapter → whether its task has tokens after the prompt.
        names: of the adapters that are to edit; without them the active ones of every site.
    """
    chosen = None if names is None else tuple(names)
    by_site: dict[str, list[str]] = {}
    by_stack: dict[str, dict[str, int]] = {path: {} for path in stacks}
    for path, layer in layers.items():
        wanted = layer.active_adapters if chosen is None else chosen
        editing = [name for name in dict.fromkeys(wanted) if name in views and layer.edits_by(name)]
        if editing:
            by_site[path] = editing
            places = by_stack[layer.stack]
            for name in editing:
                places.setdefault(name, len(places))
    units = {
        path: tuple(
            LiveUnit(
                (by_stack[layer.stack][name], number),
                name,
                layer.unit((name, number)),
                layer.taps[name, number],
                layer.scaling.tensor(name),
            )
            for name in editing
            for number in layer.units[name]
        )
        for path, editing in by_site.items()
        for layer in (layers[path],)
    }
    of_stacks = {
        path: StackActivity(
            tuple(views[name] for name in editing),
            generates=any(views[name].touches_generated for name in editing),
            from_end=any(views[name].needs_prompt_end for name in editing),
            has_completion=any(has_completion[name] for name in editing),
            needs_ids=any(tokens_of(views[name].groups) for name in editing),
        )
        for path, editing in by_stack.items()
    }
    return Activity(of_stacks, units)
