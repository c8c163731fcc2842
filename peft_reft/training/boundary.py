"""The provider that asks a running trainer for the labels which a forward was not given.

A trainer calls its model's `train` before every step and `eval` before every evaluation. These calls reach our layers,
and there it is looked up, once, whether a trainer runs. If somebody else called them, the first forward without labels
and stated positions looks once more: a trainer's method may be called by hand. After that a forward outside of a
trainer makes one truth test. Only inside of one is the batch looked for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.boundary import BoundaryProvider, Knowledge
from peft_reft.runtime.inputs import Explicit

from .refusals import cuts_rows, refuse_cut_rows
from .running import running_trainer

__all__ = ["Trainers"]


@dataclass(frozen=True)
class _Noted:
    """A trainer that runs this model.

    Attributes:
        settings: its configuration.
        cuts: whether its rows are cut anywhere.
    """

    settings: Any
    cuts: bool


_UNKNOWN = _Noted(None, cuts=False)
"""Nobody has looked since the mode was changed."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _traced_for_trainer() -> bool:
    """Where a forward is traced: whether a trainer runs. The graph itself sees no stack."""
    return running_trainer() is not None


class Trainers(BoundaryProvider):
    """Knows whether a trainer runs the model, and asks it."""

    noted: _Noted | None = None

    def mode_changed(self) -> None:
        """Note whether it is a trainer that calls."""
        running = running_trainer()
        if running is None or not (running.starts or running.trains(self.state.model)):
            self.noted = _UNKNOWN if "transformers.trainer" in sys.modules else None
            return
        self.noted = _Noted(running.settings, cuts_rows(running.settings))

    def knowledge(self, call: Mapping[str, Any], explicit: Explicit) -> Knowledge | None:
        """The labels of the batch whose tokens a forward got."""
        if (
            torch.compiler.is_compiling()
        ):  # a graph reads what was noted only inside of a trainer: it would guard on it
            if not _traced_for_trainer():
                return None
        elif self.noted is None:
            return None
        noted = self.noted or _UNKNOWN
        if not self.state.activity().units:
            return None
        if noted.cuts and explicit.locations is None:
            views = self.state.active_views()
            refuse_cut_rows(noted.settings, [(view.name, group.positions) for view in views for group in view.groups])
        if explicit or call.get("labels") is not None:
            return None
        labels = self._asked_between_graphs(call) if torch.compiler.is_compiling() else self._asked(call)
        return None if labels is None else _Labelled(labels)

    def runs_model(self) -> bool:
        """Whether a trainer runs it."""
        return self.noted is not None

    def _asked(self, call: Mapping[str, Any]) -> torch.Tensor | None:
        running = running_trainer()
        if running is None:  # it has ended since, or has handed the model on
            self.noted = None
            return None
        found, labels = running.labels_of(call)
        if not found and not running.is_elsewhere() and self._matters(call):
            raise PromptBoundaryError(
                f"a {type(running.trainer).__name__} runs the model without labels, and its batch was not found",
                code="trainer.batch",
                value=type(running.trainer).__name__,
                rule="positions that count from the prompt's end need the labels of the batch, which the trainer has "
                "taken out",
                fix="use ReftDataCollator as data_collator, which states the prompts in every batch (prompt_mask); in "
                "a forward of your own pass prompt_lengths or prompt_mask",
            )
        return labels

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's decorator has no type
    def _asked_between_graphs(self, call: Mapping[str, Any]) -> torch.Tensor | None:
        return self._asked(call)

    def _matters(self, call: Mapping[str, Any]) -> bool:
        """Whether it makes a difference where the prompt of this forward ends."""
        stacks = self.state.activity().stacks.values()
        ids = call.get("input_ids")
        several = not isinstance(ids, torch.Tensor) or (ids.dim() == 2 and ids.shape[1] > 1)
        return several and any(stack.from_end and stack.has_completion for stack in stacks)


class _Labelled(Knowledge):
    """Of a forward whose labels a trainer has taken out."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels

    def arguments(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """With them."""
        return {**call, "labels": self.labels}
