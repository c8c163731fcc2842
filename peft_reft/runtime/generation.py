"""`generate` with positions: the prompt's width is known when it starts, and every forward works in absolute slots."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.hub_format.positions import Last, PromptWindow

from .adapters import AdapterView
from .caches import cache_of, check_continued, past_length, unknown_length
from .inputs import CallInputs, Explicit
from .masks import real_slots
from .records import CacheRecord, edit_state, note_record, record_of
from .resolve import Situation, slot_masks
from .trainer_refusals import refuse_tool_turns
from .trainers import running_trainer

if TYPE_CHECKING:
    from .frames import UnitKey
    from .hooks import Runtime

__all__ = [
    "Session",
    "check_guidance",
    "check_session",
    "check_turns",
    "current_session",
    "generate_with_positions",
]

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


@dataclass
class Session:
    """One running `generate`.

    Attributes:
        owner: the runtime of the generating model.
        batch: rows of the prompt; beams and returned sequences repeat each of them.
        width: slots of the prompt; None until the decoder of an encoder-decoder starts.
        real: bool `[batch, width]`, where the caller passed an attention mask.
        explicit: positions the caller stated.
        prompt: ids or embeddings as given, where there is one stack.
        prefilled: whether the cache holds the whole prompt.
        seen: how many tokens have gone into the cache.
        rotations: of the active adapters; parameters do not change while generating.
        recording: stack → masks of what was edited, where a prompt cache is made: the prompt goes on after it.
    """

    owner: Runtime
    batch: int
    width: int | None
    real: Tensor | None
    explicit: Explicit
    prompt: Tensor | None = field(default=None, repr=False)
    prefilled: bool = False
    seen: int = 0
    rotations: dict[tuple[str, UnitKey], Tensor] | None = field(default=None, repr=False)
    recording: dict[str, dict[UnitKey, Tensor]] | None = field(default=None, repr=False)

    def is_continued_by(self, tokens: Tensor | None) -> bool:
        """Whether an inner `generate` drafts this one's tokens: the model is its own assistant."""
        own = self.prompt
        if own is None or tokens is None or tokens.dim() != own.dim() or tokens.shape[1] < own.shape[1]:
            return False
        return torch.equal(tokens[:, : own.shape[1]], own)

    def is_decoding(self, call: Mapping[str, Any]) -> bool:
        """Whether a forward computes generated tokens only, told without a look at any tensor."""
        return self.prefilled and cache_of(call) is not None

    def situation(self, call: CallInputs, situation: Situation) -> Situation:
        """What is known about one forward of this generation."""
        if self.width is None:
            self.width = call.past + call.length
        self.seen = call.past + call.length
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


def check_session(runtime: Runtime) -> None:
    """Refuse a forward of a generation that did not start with the model's own `generate`.

    Its sequences grow from forward to forward, and nothing else would tell where the prompt ended.

    Raises:
        PromptBoundaryError: `generate` was called on the class, or on a model that holds this one.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE:
            generating = frame.f_locals.get("self")
            if isinstance(generating, nn.Module) and any(part is runtime.model for part in generating.modules()):
                break
        frame = frame.f_back
    if frame is None:
        return
    whole = generating is runtime.model
    raise PromptBoundaryError(
        f"a {type(generating).__name__} generates, and its generate is not the one of the model with the adapters",
        code="positions.unbound_generate",
        rule="the prompt's end is known only where model.generate starts",
        fix="call model.generate(...), not type(model).generate(model, ...)"
        if whole
        else "make the PEFT model of the model that generates; layers_pattern picks one of its stacks",
    )


def generate_with_positions(runtime: Runtime, *args: Any, **kwargs: Any) -> Any:
    """Run the model's own `generate` inside a session."""
    model = runtime.model
    explicit, kwargs = Explicit.take(kwargs)
    check_guidance(runtime, kwargs)
    check_turns(runtime)
    own_generate = type(model).generate  # type: ignore[attr-defined]
    tokens = _given_tokens(args, kwargs)
    outer = current_session(runtime)
    if outer is not None and outer.is_continued_by(tokens):
        session = replace(outer, prefilled=False, seen=0)
    else:
        session = _session(runtime, explicit, tokens, kwargs)
        _reuse(session, tokens, kwargs)
    _SESSIONS.stack.append(session)
    try:
        return own_generate(model, *args, **kwargs)
    finally:
        _SESSIONS.stack.pop()


def check_guidance(runtime: Runtime, kwargs: Mapping[str, Any]) -> None:
    """Refuse guidance: it runs a second prompt through the model, which would take the first one's positions."""
    settings = (kwargs.get("generation_config"), getattr(runtime.model, "generation_config", None))
    stated = (kwargs.get("guidance_scale"), *(getattr(config, "guidance_scale", None) for config in settings))
    scale = next((value for value in stated if value is not None), None)
    if scale in (None, 1) or not runtime.active():
        return
    raise PromptBoundaryError(
        f"guidance_scale={scale} runs an unconditional prompt beside the given one",
        code="positions.guidance",
        value=scale,
        rule="one generation edits one prompt per row",
        fix="leave guidance_scale out, or disable the adapter with disable_adapter()",
    )


def check_turns(runtime: Runtime) -> None:
    """Refuse to generate for a trainer whose turns go on after the results of tools."""
    if (running := running_trainer()) is not None:
        views = runtime.active_views()
        refuse_tool_turns(running.trainer, [(view.name, group.positions) for view in views for group in view.groups])


def _given_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What `generate` was given as the prompt; beside embeddings, ids only head the output."""
    given = (kwargs.get("inputs_embeds"), *args[:1], *map(kwargs.get, ("inputs", "input_ids", "input_features")))
    return next((tokens for tokens in given if isinstance(tokens, Tensor)), None)


def _session(runtime: Runtime, explicit: Explicit, tokens: Tensor | None, kwargs: dict[str, Any]) -> Session:
    batch, width = (1, 1) if tokens is None else tokens.shape[:2]
    if getattr(getattr(runtime.model, "config", None), "is_encoder_decoder", False):
        own = _decoder_width(runtime, kwargs)
        return Session(runtime, batch, own, None, _own_columns(explicit, own, kwargs.get("labels")))
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    cached = past_length(cache)
    if cached is None:
        raise unknown_length()
    if cached and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == cached + width:
        width += cached  # only the new tokens were passed
    record = record_of(cache)
    if cached and not explicit and (record is None or cached > record.length):
        check_continued(cache, runtime.active_views(), cached=cached, width=width)
    real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == width else None
    return Session(runtime, batch, width, real, explicit, prompt=tokens, seen=cached)


def recorded_prefill(runtime: Runtime, call: dict[str, Any]) -> Any:
    """Run the head of a longer prompt, and note on the cache in its output what was edited.

    Args:
        runtime: of the model.
        call: keywords of its forward: `input_ids` `[batch, seq]`, `attention_mask` or None, …
    """
    ids, mask = call["input_ids"], call["attention_mask"]
    batch, width = ids.shape
    rest = 1 + max((_reach(view) for view in runtime.active_views()), default=0)
    real = None if mask is None else torch.nn.functional.pad(mask.bool(), (0, rest), value=True)
    recording: dict[str, dict[UnitKey, Tensor]] = {}
    session = Session(runtime, batch, width + rest, real, Explicit(), prompt=ids, recording=recording)
    _SESSIONS.stack.append(session)
    try:
        output = runtime.model(**call)
    finally:
        _SESSIONS.stack.pop()
    cache = cache_of(output)
    if cache is not None:
        note_record(cache, CacheRecord(ids.clone(), recording, edit_state(runtime)))
    return output


def _reach(view: AdapterView) -> int:
    """How far from a prompt's end its edits can start."""
    bounds = [0]
    for group in view.groups:
        for term in (*group.positions.terms, *group.positions.exclusions):
            if isinstance(term, Last):
                bounds.append(term.count)
            elif isinstance(term, PromptWindow):
                bounds += [-bound for bound in (term.start, term.stop) if bound is not None and bound < 0]
    return max(bounds)


def _is_whole(tokens: Tensor | None, width: int | None) -> TypeGuard[Tensor]:
    """Whether these are the ids of a whole prompt, its cached head included."""
    return tokens is not None and tokens.dim() == 2 and tokens.shape[1] == width


def _reuse(session: Session, tokens: Tensor | None, kwargs: dict[str, Any]) -> None:
    """Cut a prompt cache where this prompt asks for other edits than it holds, so that the rest is computed again."""
    cache, runtime = cache_of(kwargs), session.owner
    record = record_of(cache)
    past = past_length(cache) or 0
    if record is None or past > record.length or not _is_whole(tokens, session.width):
        return
    record.check_state(runtime)
    record.check_ids(tokens)
    kept = min(past, tokens.shape[1] - 1)  # a prefill computes at least one token
    for path in runtime.stacks:
        active = runtime.activity().stacks[path]
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


def _decoder_width(runtime: Runtime, kwargs: dict[str, Any]) -> int | None:
    """Slots of the decoder's prompt: the start token, and what the caller put after it."""
    given = kwargs.get("decoder_input_ids")
    if not isinstance(given, Tensor):
        return None if kwargs.get("decoder_inputs_embeds") is not None else 1
    start = getattr(runtime.model.generation_config, "decoder_start_token_id", None)
    begins = start is None or bool((given[:, 0] == start).all())
    return given.shape[1] + (0 if begins else 1)


def _own_columns(explicit: Explicit, width: int | None, labels: Any) -> Explicit:
    """What is stated of a decoder's prompt. Beside labels (a trainer's batch) a mask has their columns: cut it."""
    mask = explicit.prompt_mask
    if width is None or not isinstance(mask, Tensor) or not isinstance(labels, Tensor) or mask.shape != labels.shape:
        return explicit
    return replace(explicit, prompt_mask=mask[:, :width])


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
