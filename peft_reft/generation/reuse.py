"""A prompt cache under another prompt: cut where it holds other edits, so that the rest is computed again."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.inputs import CallInputs
from peft_reft.runtime.past import cache_of, past_length
from peft_reft.runtime.resolve import slot_masks
from peft_reft.runtime.situation import Situation

from .records import record_of
from .session import Session

__all__ = ["reuse"]


def _is_whole(tokens: Tensor | None, width: int | None) -> TypeGuard[Tensor]:
    """Whether these are the ids of a whole prompt, its cached head included."""
    return tokens is not None and tokens.dim() == 2 and tokens.shape[1] == width


def reuse(session: Session, tokens: Tensor | None, kwargs: dict[str, Any]) -> None:
    """Cut a prompt cache where this prompt asks for other edits than it holds, so that the rest is computed again."""
    cache, state = cache_of(kwargs), session.state
    record = record_of(cache)
    past = past_length(cache) or 0
    if record is None or past > record.length or not _is_whole(tokens, session.width):
        return
    record.check_state(state)
    record.check_ids(tokens)
    kept = min(past, tokens.shape[1] - 1)  # a prefill computes at least one token
    for path in state.stacks:
        active = state.activity().stacks[path]
        call = CallInputs(
            tokens.shape[0],
            tokens.shape[1],
            tokens.device,
            attention_mask=kwargs.get("attention_mask"),
            input_ids=tokens,
        )
        known = Situation(
            has_completion=active.has_completion,
            explicit=session.explicit,
            prompt_width=session.width,
            prompt_real=session.real,
        )
        kept = min(kept, record.agreeing(path, slot_masks(call, active.views, known)))
    if kept < past and hasattr(cache, "crop"):
        try:
            cache.crop(kept - past)
        except RuntimeError as error:  # a sliding window has let go of what would be needed
            raise PromptBoundaryError(
                f"slot {kept} of {past} cached ones holds other edits than this prompt asks for",
                code="positions.cached",
                rule="a cache with a sliding window cannot be cut, so the rest cannot be computed again",
                fix="make the prompt cache shorter than the prompt by as many tokens as its end is edited",
            ) from error
