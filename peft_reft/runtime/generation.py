"""`generate` with positions: the prompt's width is known when it starts, and every forward works in absolute slots."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import PromptBoundaryError

from .inputs import CallInputs, Explicit, _past_length
from .masks import real_slots

if TYPE_CHECKING:
    from .frames import UnitKey
    from .hooks import Runtime
    from .resolve import Situation

__all__ = ["Session", "current_session", "generate_with_positions"]


@dataclass
class Session:
    """One running `generate`.

    Attributes:
        owner: the runtime of the generating model.
        batch: rows of the prompt; beams and returned sequences repeat each of them.
        width: slots of the prompt; None until the decoder of an encoder-decoder starts.
        real: bool `[batch, width]`, where the caller passed an attention mask.
        explicit: positions the caller stated.
        prefilled: whether the cache holds the whole prompt.
        rotations: of the active adapters; parameters do not change while generating.
    """

    owner: Runtime
    batch: int
    width: int | None
    real: Tensor | None
    explicit: Explicit
    prefilled: bool = False
    rotations: dict[tuple[str, UnitKey], Tensor] | None = field(default=None, repr=False)

    def is_decoding(self, call: Mapping[str, Any]) -> bool:
        """Whether a forward computes generated tokens only, told without a look at any tensor."""
        return self.prefilled and call.get("past_key_values") is not None

    def situation(self, call: CallInputs, situation: Situation) -> Situation:
        """What is known about one forward of this generation."""
        if self.width is None:
            self.width = call.past + call.length
        if call.cached and call.past + call.length >= self.width:
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


class _Sessions(threading.local):
    def __init__(self) -> None:
        self.stack: list[Session] = []


_SESSIONS = _Sessions()


def current_session(owner: Runtime) -> Session | None:
    """The innermost generation of a model in this thread, or None."""
    for session in reversed(_SESSIONS.stack):
        if session.owner is owner:
            return session
    return None


def generate_with_positions(runtime: Runtime, *args: Any, **kwargs: Any) -> Any:
    """Run the model's own `generate` inside a session."""
    model = runtime.model
    explicit, kwargs = Explicit.take(kwargs)
    own_generate = type(model).generate  # type: ignore[attr-defined]
    _SESSIONS.stack.append(_session(runtime, explicit, args, kwargs))
    try:
        return own_generate(model, *args, **kwargs)
    finally:
        _SESSIONS.stack.pop()


def _session(runtime: Runtime, explicit: Explicit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Session:
    tokens = args[0] if args else None
    for name in ("inputs", "input_ids", "inputs_embeds", "input_features"):
        tokens = kwargs.get(name) if tokens is None else tokens
    batch = tokens.shape[0] if isinstance(tokens, Tensor) else 1
    if getattr(getattr(runtime.model, "config", None), "is_encoder_decoder", False):
        return Session(runtime, batch, _decoder_width(runtime, kwargs), None, explicit)
    width = tokens.shape[1] if isinstance(tokens, Tensor) else 1
    mask = kwargs.get("attention_mask")
    cached = _past_length(kwargs.get("past_key_values"))
    if cached and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == cached + width:
        width += cached  # only the new tokens were passed
    if cached:
        _check_cached(runtime, explicit, cached, width)
    real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == width else None
    return Session(runtime, batch, width, real, explicit)


def _decoder_width(runtime: Runtime, kwargs: dict[str, Any]) -> int | None:
    """Slots of the decoder's prompt: the start token, and what the caller put after it."""
    given = kwargs.get("decoder_input_ids")
    if not isinstance(given, Tensor):
        return None if kwargs.get("decoder_inputs_embeds") is not None else 1
    start = getattr(runtime.model.generation_config, "decoder_start_token_id", None)  # type: ignore[union-attr]
    begins = start is None or bool((given[:, 0] == start).all())
    return given.shape[1] + (0 if begins else 1)


def _check_cached(runtime: Runtime, explicit: Explicit, cached: int, width: int) -> None:
    """A window that counts from the prompt's end must not reach into what is cached already."""
    from peft_reft.hub_format.positions import First, Last

    for view in runtime.views.values():
        for group in view.groups:
            reach = [
                term.count if isinstance(term, Last) else width
                for term in group.positions.terms
                if not isinstance(term, First)
            ]
            if not explicit and group.positions.needs_prompt_end and max(reach, default=0) > width - cached:
                raise PromptBoundaryError(
                    f"positions {str(group.positions)!r} reach into the {cached} cached slots of a prompt of {width}",
                    code="positions.cached",
                    rule="cached tokens cannot be edited any more",
                    fix="leave at least as many new tokens as 'l<n>' edits, or generate without past_key_values",
                )


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
