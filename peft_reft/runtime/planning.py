"""One call → its frame: who knows of its prompt, which tokens each unit edits, which rows of each stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from peft_reft.positions import LaterDoubts
from peft_reft.sites import can_generate

from .activity import Activity, StackActivity
from .arguments import of_method
from .boundary import BoundaryProvider, Knowledge
from .compiling import beside_graphs
from .frames import Frame
from .inputs import CallInputs, Explicit, call_inputs, rows_of_choices
from .noise import noise_for
from .operands import Operands
from .past import unknown_length
from .penalties import penalties_of
from .plan import StackPlan
from .position_warning import warn_of_prefill
from .resolve import columns_of, slot_masks
from .row_choice import RowAdapters
from .situation import Situation, UnitKey, UnitMask
from .state import ModelState
from .whole_prompts import whole_prompt_plan

__all__ = ["Planner"]


_RECOMPUTED = 2
"""So many tokens XLNet takes off its mems again, to compute them once more; what holds more has dropped some."""


class Planner:
    """Plans the forwards of one model.

    Args:
        state: of the model.
        providers: asked in this order what they know of a forward.
        operands: prepares what the edits of a frame need.
    """

    def __init__(self, state: ModelState, providers: Sequence[BoundaryProvider], operands: Operands) -> None:
        self.state = state
        self.providers = providers
        self.operands = operands
        self.labels_are_tokens: bool = can_generate(state.model) is not False
        kept = getattr(getattr(state.model, "config", None), "mem_len", None)
        self.window: int | None = kept - _RECOMPUTED if isinstance(kept, int) and kept > 0 else None
        self.takes_choices: bool = any("MultipleChoice" in cls.__name__ for cls in type(state.model).__mro__)
        self.takes_labels: bool = "labels" in of_method(type(state.model).forward)
        self.warns: bool = True
        self.doubts: LaterDoubts = LaterDoubts()

    @beside_graphs
    def frame(
        self,
        paths: Sequence[str],
        call: Mapping[str, Any],
        explicit: Explicit,
        module: nn.Module,
        *,
        alone: bool = False,
        compiled: bool = False,
    ) -> Frame:
        """The frame of a forward that starts.

        Args:
            paths: of the stacks that run in it.
            call: its arguments by name, without the positions that it states.
            explicit: those positions.
            module: whose forward it is.
            alone: whether it is of one stack of an encoder-decoder, whose tokens have plain names.
            compiled: whether the forward is a graph, beside which this runs.

        Raises:
            PromptBoundaryError, LocationError: see `slot_masks`.
        """
        state = self.state
        if state.unverified:
            state.verify()
        if self.doubts.waiting:
            self.doubts.settle()
        for provider in self.providers:
            if provider.prepares:
                provider.starting(call)
        known, rows = self._known(call, explicit), state.running.rows
        named = None if known is None else known.adapters
        activity = state.activity() if named is None else state.activity_named(named)
        if not activity.units and rows is None:
            return Frame({}, {})
        penalties = penalties_of(activity, call, module, state.model) if activity.penalized else None
        if known is not None:
            call, explicit = known.arguments(call), explicit or known.explicit
        if self.takes_choices:
            call = rows_of_choices(call)
        plans = {path: self._plan(path, call, explicit, known, rows, activity, alone=alone) for path in paths}
        frame = Frame(plans, activity.units, rows, penalties=penalties, noise=noise_for(activity, state.model))
        if known is not None and known.keeps:
            frame.keeper, frame.prepared = known, known.prepared
        if module.__dict__.get("_is_replica"):
            frame.prepared, frame.ready = {}, {}  # of DataParallel: a unit computes with its own copy
        frame.guarded = named is not None
        if compiled and not torch.is_grad_enabled():
            self.operands.ahead(frame)
        frame.counts_from_end = activity.from_end and not explicit and (known is None or known.from_end)
        return frame

    def _known(self, call: Mapping[str, Any], explicit: Explicit) -> Knowledge | None:
        for provider in self.providers:
            known = provider.knowledge(call, explicit)
            if known is not None:
                return known
        return None

    def _plan(
        self,
        path: str,
        call: Mapping[str, Any],
        explicit: Explicit,
        known: Knowledge | None,
        rows: RowAdapters | None,
        activity: Activity,
        *,
        alone: bool,
    ) -> StackPlan | None:
        stack, active = self.state.stacks[path], activity.stacks[path]
        if known is not None and known.plans_itself and not explicit:
            return known.plan(stack.role, active.views) if active.views else None
        inputs = call_inputs(
            call,
            stack.role,
            seen=None if known is None else known.seen,
            alone=alone,
            labels_are_tokens=self.labels_are_tokens,
        )
        if inputs is None or not active.views:
            if rows is not None and inputs is not None:
                rows.repeats(inputs.batch)  # a wrong number of names is refused also where none of them edits
            return None
        explicit.check_names(self.state.views, () if stack.role == "only" else ("encoder", "decoder"))
        if known is not None:
            inputs = known.inputs(inputs, explicit)
        if _is_generated(inputs) and not active.generates and not explicit and not (known and known.tells_prompt):
            return None
        if not inputs.past_known or (self.window is not None and inputs.past >= self.window):
            raise unknown_length()
        # asked last: a graph that has read the flag is made again once it has changed
        if known is None and not explicit and not torch.compiler.is_compiling() and self.warns:
            self._warn(stack.role, inputs, active)
        situation = self._situation(stack.role, active, explicit)
        if known is not None and stack.role != "encoder":
            told = known.situation(inputs, situation, generates=active.generates)
            if told is None:
                return None
            situation = told
        if known is None and rows is None:
            whole = whole_prompt_plan(inputs, active, situation)
            if whole is not None:
                if not whole.plans:  # a graph that found none would be made again once it has them
                    whole.make_rows(
                        members for at, members in activity.units.items() if self.state.layers[at].stack == path
                    )
                return whole
        masks = slot_masks(inputs, active.views, situation)
        if known is not None:
            known.resolved(path, masks, inputs)
        chosen = columns_of(masks, inputs)
        if rows is not None:
            return _plan_of_rows(inputs, active, chosen, rows)
        return StackPlan(inputs.batch, inputs.length, chosen, inputs.past)

    def _situation(self, role: str, active: StackActivity, explicit: Explicit) -> Situation:
        return Situation(
            role=role,
            has_completion=active.has_completion,
            trains_with_labels=self.state.model.training and self.takes_labels,
            encoder_edited=role != "only" and self._encoder_edited(),
            explicit=explicit,
            doubts=self.doubts,
        )

    def _warn(self, role: str, inputs: CallInputs, active: StackActivity) -> None:
        """Warn, once, of a forward that is taken for a prefill because nobody says where its prompt ends."""
        if (
            not (active.from_end and active.has_completion)
            or role == "encoder"
            or inputs.labels is not None
            or inputs.length == 1
            or inputs.past
            or self.state.model.training
            or any(provider.runs_model() for provider in self.providers)
        ):
            return
        self.warns = False
        warn_of_prefill(inputs.length, [view.name for view in active.views if view.needs_prompt_end])

    def _encoder_edited(self) -> bool:
        stacks = self.state.activity().stacks
        return any(stack.role == "encoder" and bool(stacks[path].views) for path, stack in self.state.stacks.items())


def _plan_of_rows(
    inputs: CallInputs, active: StackActivity, chosen: Mapping[UnitKey, UnitMask], rows: RowAdapters
) -> StackPlan:
    """Every unit edits the rows of its own adapter."""
    selected = {
        (place, unit): replace(
            found, mask=found.mask & rows.selects(active.views[place].name, inputs.batch, inputs.device)
        )
        for (place, unit), found in chosen.items()
    }
    return StackPlan(inputs.batch, inputs.length, selected, inputs.past, row_by_row=True, whole=rows.stack is not None)


def _is_generated(inputs: CallInputs) -> bool:
    """Whether these are taken for generated tokens: one on top of a cache is."""
    return inputs.continues and inputs.length == 1 and inputs.cu_seq_lens is None
