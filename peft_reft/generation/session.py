"""A running `generate`: the prompt's width is known when it starts, and every forward works in absolute slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from peft_reft.runtime.frames import Prepared
from peft_reft.runtime.inputs import CallInputs, Explicit
from peft_reft.runtime.masks import real_slots
from peft_reft.runtime.past import cache_of, hidden_cache, unknown_length
from peft_reft.runtime.situation import Situation, UnitKey
from peft_reft.runtime.state import ModelState

__all__ = ["Session"]


@dataclass
class Session:
    """One running `generate`: which tokens are its prompt, and how far it is.

    Attributes:
        state: of the generating model.
        batch: rows of the prompt; beams and returned sequences repeat each of them.
        width: slots of the prompt; None until the decoder of an encoder-decoder starts.
        real: bool `[batch, width]`, where the caller passed an attention mask.
        explicit: positions the caller stated.
        prompt: ids or embeddings as given, where there is one stack.
        prefilled: whether the cache holds the whole prompt.
        seen: how many tokens have gone into the cache.
        prepared: of the active adapters; parameters do not change while generating.
        restarts: whether its model's own `generate` decodes several times, each from tokens of its own making
            (Whisper: languages, segments, temperatures): then each has the prompt that its first forward has.
        recording: stack → masks of what was edited, where a prompt cache is made: the prompt goes on after it.
    """

    state: ModelState
    batch: int
    width: int | None
    real: Tensor | None
    explicit: Explicit
    prompt: Tensor | None = field(default=None, repr=False)
    prefilled: bool = False
    seen: int = 0
    prepared: Prepared | None = field(default=None, repr=False)
    recording: dict[str, dict[UnitKey, Tensor]] | None = field(default=None, repr=False)
    restarts: bool = False

    def is_continued_by(self, tokens: Tensor | None) -> bool:
        """Whether an inner `generate` drafts this one's tokens: the model is its own assistant."""
        own = self.prompt
        if own is None or tokens is None or tokens.dim() != own.dim() or tokens.shape[1] < own.shape[1]:
            return False
        return torch.equal(tokens[:, : own.shape[1]], own)

    def is_decoding(self, call: Mapping[str, Any]) -> bool:
        """Whether a forward computes generated tokens only, told without a look at any tensor."""
        return self.prefilled and not self.restarts and cache_of(call) is not None

    def edits_nothing(self, call: Mapping[str, Any]) -> bool:
        """Whether a forward edits nothing, told by a few tests: every token that is generated comes by here."""
        return self.prefilled and not self.state.activity().generates and self.is_decoding(call)

    def situation(self, call: CallInputs, situation: Situation) -> Situation:
        """What is known about one forward of this generation.

        Raises:
            PromptBoundaryError: the model has a cache that is not seen, or computes tokens again of a cache that does
                not count: which tokens these are would be a guess.
        """
        if self.restarts and call.past == 0 and (call.cached or call.length != self.seen + 1):
            self.width, self.real, self.batch, self.prefilled = None, None, call.batch, False
        if self.width is None:
            self.width = call.past + call.length
        if self.seen >= self.width:  # the prompt is through
            if not call.cached and call.length < self.width:
                raise hidden_cache(call.length, self.seen)
            if not call.past_told and call.length > 1:
                raise unknown_length()
        self.seen = call.past + call.length
        if call.cached and call.past_told and call.past + call.length >= self.width:
            self.prefilled = True
        repeats = max(1, call.batch // self.batch)
        known = replace(
            situation,
            explicit=_repeat_explicit(situation.explicit, repeats),
            prompt_width=self.width,
            prompt_real=None,
        )
        if self.real is None:
            seen = real_slots(call, known, None)
            if call.past + call.length >= self.width:
                self.real = seen[::repeats, : self.width]
            return replace(known, prompt_real=seen)
        return replace(known, prompt_real=_repeat(self.real, repeats))


def _repeat(tensor: Tensor, repeats: int) -> Tensor:
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 0)


def _repeat_explicit(explicit: Explicit, repeats: int) -> Explicit:
    if repeats == 1 or not explicit:
        return explicit

    def repeat(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: repeat(item) for name, item in value.items()}
        return torch.repeat_interleave(value, repeats, 0) if isinstance(value, Tensor) else value

    return Explicit(repeat(explicit.prompt_mask), repeat(explicit.prompt_lengths), repeat(explicit.locations))
