"""Who knows of a forward what its arguments do not say: where the prompt ends, what the cache holds, the labels.

The runtime knows no generation and no trainer. They register a provider each; a forward asks one after the other, and
the first that knows something of it is listened to. A provider that has nothing to say answers by one truth test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from .frames import Prepared
from .inputs import NOTHING, CallInputs, Explicit
from .plan import StackPlan
from .situation import Situation, UnitKey, UnitMask
from .state import ModelState
from .views import AdapterView

__all__ = ["BoundaryProvider", "Knowledge", "providers_for", "register_boundary"]

Provider = TypeVar("Provider", bound="BoundaryProvider")


class Knowledge:
    """What a provider knows of one forward. Each kind overrides what it knows.

    Attributes:
        explicit: positions that were stated where the forward cannot see them, e.g. to `generate`.
        seen: how many tokens have gone into the cache, for caches that do not say.
        tells_prompt: whether it is known where the prompt ends, so that one token on top of a cache need not be taken
            for a generated one.
        keeps: whether what edits need stays the same from forward to forward, and is kept with this.
        prepared: that, where it is kept.
        from_end: whether edits of this forward may count from the end of its prompt.
        plans_itself: whether `plan` is asked, in place of resolving the call.
        adapters: names of those that edit in this forward, where they are not the active ones. Others' tokens are in
            it then, so a row whose edit is no number stays as it is.
    """

    explicit: Explicit = NOTHING
    seen: int | None = None
    tells_prompt: bool = False
    keeps: bool = False
    prepared: Prepared | None = None
    from_end: bool = True
    plans_itself: bool = False
    adapters: tuple[str, ...] | None = None

    def arguments(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The forward's arguments by name, with what is known beside them."""
        return call

    def inputs(self, inputs: CallInputs, explicit: Explicit) -> CallInputs:
        """A stack's view of the call, with what is known of its cache."""
        return inputs

    def situation(self, inputs: CallInputs, situation: Situation, *, generates: bool) -> Situation | None:
        """What is known about a decoder's call beside its tensors; None where it edits nothing."""
        return situation

    def resolved(self, stack: str, masks: Mapping[UnitKey, UnitMask], inputs: CallInputs) -> None:
        """Called with the tokens that a stack edits, over all slots: to refuse them, or to note them."""

    def plan(self, role: str, views: Sequence[AdapterView]) -> StackPlan | None:
        """A stack's plan, where this knows better than the call's tensors do."""
        raise NotImplementedError


class BoundaryProvider:
    """One for each model with adapters and each class that is registered.

    Args:
        state: of the model.

    Attributes:
        prepares: whether `starting` is called.
    """

    prepares: bool = False

    def __init__(self, state: ModelState) -> None:
        self.state = state

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self.state.model

    def attach(self) -> None:
        """Put what is needed on the model, on this instance alone."""

    def detach(self) -> None:
        """Take it off again."""

    def mode_changed(self) -> None:
        """Called when somebody calls the model's `train` or `eval`."""

    def starting(self, call: Mapping[str, Any]) -> None:
        """Called before a forward is planned, whoever knows of it, with its arguments: to refuse, to prepare."""

    def knowledge(self, call: Mapping[str, Any], explicit: Explicit) -> Knowledge | None:
        """What is known of a forward that starts.

        Args:
            call: its arguments by name.
            explicit: the positions that it states.
        """
        return None

    def runs_model(self) -> bool:
        """Whether what it speaks for runs the model now, also where it has nothing to say of a forward."""
        return False


_REGISTERED: list[type[BoundaryProvider]] = []


def register_boundary(provider: type[Provider]) -> type[Provider]:
    """Let a provider be asked, after those that are registered already."""
    if provider not in _REGISTERED:
        _REGISTERED.append(provider)
    return provider


def providers_for(state: ModelState) -> list[BoundaryProvider]:
    """A new provider of each registered class."""
    return [provider(state) for provider in _REGISTERED]
