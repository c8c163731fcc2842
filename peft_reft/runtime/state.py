"""What a base model with adapters is: its stacks, its sites, its adapters, and which of them edit now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from peft_reft.sites import Stack

from .activity import Activity, activity_of
from .frames import Running
from .views import AdapterView

__all__ = ["ATTRIBUTE", "ModelState", "state_of"]

ATTRIBUTE = "_reft_runtime"
"""Under this name a model carries its runtime."""


NAMED = 32
"""So many sets of adapters that calls have named are kept ready."""


def state_of(model: nn.Module) -> ModelState | None:
    """The state that a model carries, or None."""
    runtime = model.__dict__.get(ATTRIBUTE)
    return None if runtime is None else runtime.state


class ModelState:
    """One base model, while it has ReFT adapters.

    Attributes:
        model: the base model.
        running: what runs of it in this thread.
        stacks: its stacks that are edited, by path.
        layers: site path → its `ReftLayer`, as `SiteLayer` describes it.
        views: adapter name → its groups.
        has_completion: adapter name → whether its task has tokens after the prompt.
        unverified: adapter name → a check of its tensors that a load path gave no earlier chance for.
        kept: what rooms above keep of a model, by a name of theirs.
        changes_held: whether changes are many, and `changed` waits until it is called once more after them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.running: Running = Running()
        self.stacks: dict[str, Stack] = {}
        self.layers: dict[str, Any] = {}
        self.views: dict[str, AdapterView] = {}
        self.has_completion: dict[str, bool] = {}
        self.unverified: dict[str, Callable[[], None]] = {}
        self.kept: dict[str, Any] = {}
        self.changes_held = False
        self._activity: Activity | None = None
        self._named: dict[tuple[str, ...], Activity] = {}

    def base_modules(self) -> list[nn.Module]:
        """Every module of the model but its adapters', however many these are; once each, in the order of the tree."""
        seen, found = set(map(id, self.layers.values())), []
        waiting: list[nn.Module | None] = [self.model]
        while waiting:
            module = waiting.pop()
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                found.append(module)
                if module._modules:
                    waiting.extend(reversed(module._modules.values()))
        return found

    def activity(self) -> Activity:
        """What edits now: the running call's rows, or the active adapters."""
        rows = self.running.rows
        if rows is not None:
            if rows.activity is None:
                rows.activity = self._activity_of(rows.names)
            found: Activity = rows.activity
            return found
        if self._activity is None:
            self._activity = self._activity_of()
        return self._activity

    def activity_named(self, names: tuple[str, ...]) -> Activity:
        """What edits where these adapters do, whichever are active."""
        found = self._named.get(names)
        if found is None:
            if len(self._named) >= NAMED:
                self._named.clear()
            found = self._named[names] = self._activity_of(names)
        return found

    def changed(self, layer: Any | None = None) -> None:
        """Work out anew what edits.

        PEFT and transformers change site after site: where `layer` is not the last, that waits for the others.
        """
        self._activity = None
        self._named.clear()
        last = layer is None or layer is next(reversed(self.layers.values()), None)
        if last and not self.changes_held:
            self._activity = self._activity_of()

    def active(self, stack: str | None = None) -> list[str]:
        """Names of the adapters that edit some site, or some site of a stack, now."""
        stacks = self.activity().stacks
        chosen = list(stacks.values()) if stack is None else [stacks[stack]]
        return list(dict.fromkeys(view.name for one in chosen for view in one.views))

    def active_views(self) -> list[AdapterView]:
        """The adapters that edit some site now."""
        return [self.views[name] for name in self.active()]

    def forget(self, name: str) -> None:
        """An adapter has been deleted."""
        for table in (self.views, self.has_completion, self.unverified):
            table.pop(name, None)
        self.changed()

    def verify(self) -> None:
        """Run the checks that wait, once each."""
        for name, check in list(self.unverified.items()):
            check()
            self.unverified.pop(name, None)

    def _activity_of(self, names: tuple[str, ...] | None = None) -> Activity:
        return activity_of(self.stacks, self.layers, self.views, self.has_completion, names)
