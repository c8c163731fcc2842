"""What edits now: worked out when that changes, so that a forward finds it ready.

A forward reads no adapter's name. A compiled one guards on every Python value that it reads, and one graph is to serve
all adapters of one shape, whatever they are called; so units are keyed by their adapter's place among the active ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peft_reft.sites import Tap

from .adapters import AdapterView

if TYPE_CHECKING:
    from .frames import UnitKey
    from .hooks import Runtime

__all__ = ["Activity", "LiveUnit", "StackActivity", "activity_of"]


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
    """

    views: tuple[AdapterView, ...] = ()
    generates: bool = False
    from_end: bool = False
    has_completion: bool = False


@dataclass(frozen=True)
class Activity:
    """What edits a model: path of a stack → its adapters, path of a site → its units."""

    stacks: Mapping[str, StackActivity]
    units: Mapping[str, tuple[LiveUnit, ...]]

    @property
    def generates(self) -> bool:
        """Whether tokens after the prompt can be edited."""
        return any(stack.generates for stack in self.stacks.values())

    @property
    def from_end(self) -> bool:
        """Whether the edited tokens depend on where the prompt ends."""
        return any(stack.from_end for stack in self.stacks.values())


def activity_of(runtime: Runtime, names: Iterable[str] | None = None) -> Activity:
    """What edits a model now.

    Args:
        runtime: of the model.
        names: of the adapters that are to edit; without them the active ones of every site.
    """
    chosen = None if names is None else tuple(names)
    by_site: dict[str, list[str]] = {}
    by_stack: dict[str, dict[str, int]] = {path: {} for path in runtime.stacks}
    for path, layer in runtime.layers.items():
        wanted = layer.active_adapters if chosen is None else chosen
        editing = [name for name in dict.fromkeys(wanted) if name in runtime.views and layer.edits_by(name)]
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
        for layer in (runtime.layers[path],)
    }
    return Activity({path: _stack(runtime, names) for path, names in by_stack.items()}, units)


def _stack(runtime: Runtime, names: Iterable[str]) -> StackActivity:
    views = tuple(runtime.views[name] for name in names)
    return StackActivity(
        views,
        generates=any(view.touches_generated for view in views),
        from_end=any(view.needs_prompt_end for view in views),
        has_completion=any(runtime.has_completion[view.name] for view in views),
    )
