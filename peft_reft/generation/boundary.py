"""What a generation that runs, and a cache that carries a record, tell of a forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.boundary import BoundaryProvider, Knowledge
from peft_reft.runtime.frames import Prepared
from peft_reft.runtime.inputs import CallInputs, Explicit
from peft_reft.runtime.past import cache_of, past_length
from peft_reft.runtime.situation import Situation, UnitKey, UnitMask

from .foreign import refuse_foreign_generation
from .generate import generate_with_positions
from .records import CacheRecord, record_of
from .session import Session

__all__ = ["Generations"]


class Generations(BoundaryProvider):
    """Puts a `generate` before the model's own, and knows what runs inside of it."""

    def attach(self) -> None:
        """On this instance alone."""
        if callable(getattr(type(self.state.model), "generate", None)):
            self.state.model.generate = self.generate  # type: ignore[assignment]

    def detach(self) -> None:
        """The class's own comes to the fore again."""
        self.state.model.__dict__.pop("generate", None)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, inside a session that knows the prompt."""
        return generate_with_positions(self.state, *args, **kwargs)

    def knowledge(self, call: Mapping[str, Any], explicit: Explicit) -> Knowledge | None:
        """Of a forward inside a generation, or on a cache that was made by `prompt_cache`."""
        session: Session | None = self.state.running.session
        cache = cache_of(call)
        record = None if cache is None else record_of(cache)
        if record is not None and (past_length(cache) or 0) <= record.length:
            record.check_state(self.state)
        if session is not None or record is not None:
            return _Generated(session, record, explicit)
        if (cache is not None or call.get("use_cache") is False) and not torch.compiler.is_compiling():
            refuse_foreign_generation(self.state, cache)
        return None


class _Generated(Knowledge):
    """Of one forward.

    Args:
        session: the generation that runs, if one does.
        record: of what went into the cache, if that is known.
        explicit: what the forward states.
    """

    def __init__(self, session: Session | None, record: CacheRecord | None, explicit: Explicit) -> None:
        self.session = session
        self.record = record
        self.tells_prompt = self.keeps = session is not None
        if session is not None:
            self.explicit = session.explicit
            self.seen = session.seen
            self.from_end = session.recording is None
        self.stated = bool(explicit)
        self.fresh = False

    @property
    def prepared(self) -> Prepared | None:
        """Kept by the session: parameters do not change while it runs."""
        return None if self.session is None else self.session.prepared

    @prepared.setter
    def prepared(self, value: Prepared | None) -> None:
        if self.session is not None:
            self.session.prepared = value

    def inputs(self, inputs: CallInputs, explicit: Explicit) -> CallInputs:
        """With the ids of the cached tokens, where a record knows them."""
        if self.record is None or inputs.past > self.record.length:
            return inputs
        self.fresh = True
        if self.session is None and not self.stated:
            raise PromptBoundaryError(
                "a forward continues a prompt cache, and nothing says where the prompt ends",
                code="positions.continuation",
                rule="a prompt cache holds the head of a longer prompt",
                fix="use generate, or pass prompt_lengths or a prompt_mask over the cached and the new columns",
            )
        return replace(inputs, past_ids=self.record.ids_for(inputs.batch)[:, : inputs.past])

    def situation(self, inputs: CallInputs, situation: Situation, *, generates: bool) -> Situation | None:
        """The prompt's width; None for tokens after the prompt that nothing edits."""
        if self.session is None:
            return situation
        known = self.session.situation(inputs, situation)
        after = inputs.past >= (known.prompt_width or 0)
        return None if after and not generates and not self.fresh else known

    def resolved(self, stack: str, masks: Mapping[UnitKey, UnitMask], inputs: CallInputs) -> None:
        """Refuse a cache with other edits; note the edits of a prompt cache that is being made."""
        if self.record is not None and self.fresh:
            self.record.check(stack, masks, inputs.past)
        if self.session is not None and self.session.recording is not None:
            self.session.recording[stack] = {key: found.mask[:, : inputs.length] for key, found in masks.items()}
