"""The model's own `generate`, run inside a session that knows the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.inputs import Explicit
from peft_reft.runtime.past import cache_of, past_length, unknown_length
from peft_reft.runtime.state import ModelState
from peft_reft.training.refusals import refuse_tool_turns
from peft_reft.training.running import running_trainer

from .caches import check_continued
from .records import record_of
from .reuse import reuse
from .session import Session

__all__ = ["check_guidance", "check_turns", "generate_with_positions"]


def generate_with_positions(state: ModelState, *args: Any, **kwargs: Any) -> Any:
    """Run the model's own `generate` inside a session."""
    model = state.model
    explicit, kwargs = Explicit.take(kwargs)
    check_guidance(state, kwargs)
    check_turns(state)
    own_generate = type(model).generate  # type: ignore[attr-defined]
    tokens = _given_tokens(args, kwargs)
    running = state.running
    outer, rows = running.session, running.rows
    first = outer is None and running.call is None
    apart = rows is not None and first and not rows.take((*args, *kwargs.values()))
    if outer is not None and outer.is_continued_by(tokens):
        session = replace(outer, prefilled=False, seen=0)
    else:
        session = _session(state, explicit, tokens, kwargs)
        reuse(session, tokens, kwargs)
    try:
        running.session = session
        if apart:
            running.rows = None
        return own_generate(model, *args, **kwargs)
    finally:
        running.session = outer
        if rows is not None:
            running.rows = None if first and not apart else rows


def check_guidance(state: ModelState, kwargs: Mapping[str, Any]) -> None:
    """Refuse guidance: it runs a second prompt through the model, which would take the first one's positions."""
    settings = (kwargs.get("generation_config"), getattr(state.model, "generation_config", None))
    stated = (kwargs.get("guidance_scale"), *(getattr(config, "guidance_scale", None) for config in settings))
    scale = next((value for value in stated if value is not None), None)
    if scale in (None, 1) or not state.active():
        return
    raise PromptBoundaryError(
        f"guidance_scale={scale} runs an unconditional prompt beside the given one",
        code="positions.guidance",
        value=scale,
        rule="one generation edits one prompt per row",
        fix="leave guidance_scale out, or disable the adapter with disable_adapter()",
    )


def check_turns(state: ModelState) -> None:
    """Refuse to generate for a trainer whose turns go on after the results of tools."""
    if (running := running_trainer()) is not None:
        views = state.active_views()
        refuse_tool_turns(running.trainer, [(view.name, group.positions) for view in views for group in view.groups])


def _given_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What `generate` was given as the prompt; beside embeddings, ids only head the output."""
    given = (kwargs.get("inputs_embeds"), *args[:1], *map(kwargs.get, ("inputs", "input_ids", "input_features")))
    return next((tokens for tokens in given if isinstance(tokens, Tensor)), None)


def _session(state: ModelState, explicit: Explicit, tokens: Tensor | None, kwargs: dict[str, Any]) -> Session:
    batch, width = (1, 1) if tokens is None else tokens.shape[:2]
    if getattr(getattr(state.model, "config", None), "is_encoder_decoder", False):
        own = _decoder_width(state, kwargs)
        theirs: Any = type(state.model).generate  # type: ignore[attr-defined]  # a generating model has it
        restarts = inspect.unwrap(theirs) is not inspect.unwrap(GenerationMixin.generate)
        return Session(state, batch, own, None, _own_columns(explicit, own, kwargs.get("labels")), restarts=restarts)
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    cached = past_length(cache)
    if cached is None:
        raise unknown_length()
    if cached and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == cached + width:
        width += cached  # only the new tokens were passed
    record = record_of(cache)
    if cached and not explicit and (record is None or cached > record.length):
        check_continued(cache, state.active_views(), cached=cached, width=width)
    real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == width else None
    return Session(state, batch, width, real, explicit, prompt=tokens, seen=cached)


def _decoder_width(state: ModelState, kwargs: dict[str, Any]) -> int | None:
    """Slots of the decoder's prompt: the start token, and what the caller put after it."""
    given = kwargs.get("decoder_input_ids")
    if not isinstance(given, Tensor):
        return None if kwargs.get("decoder_inputs_embeds") is not None else 1
    start = getattr(state.model.generation_config, "decoder_start_token_id", None)
    begins = start is None or bool((given[:, 0] == start).all())
    return given.shape[1] + (0 if begins else 1)


def _own_columns(explicit: Explicit, width: int | None, labels: Any) -> Explicit:
    """What is stated of a decoder's prompt. Beside labels (a trainer's batch) a mask has their columns: cut it."""
    mask = explicit.prompt_mask
    if width is None or not isinstance(mask, Tensor) or not isinstance(labels, Tensor) or mask.shape != labels.shape:
        return explicit
    return replace(explicit, prompt_mask=mask[:, :width])
