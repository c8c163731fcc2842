"""What a forward was called with, under one set of names, whatever the model calls its arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError
from peft_reft.positions import shifted_right

from .past import cache_of, is_known, past_length

__all__ = ["EXPLICIT", "NOTHING", "CallInputs", "Explicit", "call_inputs", "rows_of_choices"]

EXPLICIT = ("prompt_mask", "prompt_lengths", "intervention_locations")
"""Keywords of `forward` and `generate` by which a caller states positions; the model itself never sees them."""
_EXPLICIT = frozenset(EXPLICIT)


@dataclass(frozen=True)
class Explicit:
    """Positions the caller states. What is said wins over everything inferred."""

    prompt_mask: Tensor | None = None
    prompt_lengths: Tensor | None = None
    locations: Tensor | Mapping[str, Any] | None = None

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> tuple[Explicit, dict[str, Any]]:
        """Split the explicit keywords off a call's keywords."""
        if _EXPLICIT.isdisjoint(kwargs):
            return NOTHING, kwargs
        rest = {name: value for name, value in kwargs.items() if name not in EXPLICIT}
        mask, lengths, locations = (kwargs.get(name) for name in EXPLICIT)
        if mask is not None and lengths is not None:
            raise LocationError("prompt_mask and prompt_lengths are both given", rule="one of them says the prompt")
        return cls(mask, lengths, locations), rest

    def __bool__(self) -> bool:
        return not (self.prompt_mask is None and self.prompt_lengths is None and self.locations is None)

    def check_names(self, adapters: Collection[str], stacks: Collection[str]) -> None:
        """Refuse a dict of locations whose keys name neither adapters nor the model's stacks."""
        if not isinstance(self.locations, Mapping):
            return
        names = set(self.locations)
        unknown = set() if names <= set(stacks) else names - set(adapters)
        if unknown:
            known = ", ".join(sorted(adapters)) + (f"; or stacks: {', '.join(sorted(stacks))}" if stacks else "")
            raise LocationError(
                f"intervention_locations has the key {sorted(map(str, unknown))[0]!r}",
                rule=f"keys are adapters: {known}",
            )

    def locations_for(self, adapter: str, role: str, *, encoder_edited: bool) -> Tensor | None:
        """The tensor meant for one adapter and one stack, or None."""
        value: Any = self.locations
        if isinstance(value, Mapping) and set(value) - {"encoder", "decoder"}:
            value = value.get(adapter)
        if isinstance(value, Mapping):
            if unknown := set(value) - {"encoder", "decoder"}:
                raise LocationError(
                    f"intervention_locations has the key {sorted(unknown)[0]!r}",
                    rule="keys are adapter names, or 'encoder' and 'decoder'",
                )
            if role == "only":
                raise LocationError(
                    f"intervention_locations of adapter {adapter!r} is a dict",
                    rule="the model has one stack, so it is a LongTensor [batch, terms, k]",
                    fix="pass the tensor itself",
                )
            value = value.get(role)
        elif encoder_edited and role not in ("encoder", "only"):
            value = None
        locations: Tensor | None = value
        return locations


_OF_CHOICES = {**dict.fromkeys(("input_ids", "attention_mask", "position_ids"), 3), "inputs_embeds": 4}
"""What runs along the tokens of a choice, and its axes."""
NOTHING = Explicit()
"""Nothing is stated."""


@dataclass(frozen=True)
class CallInputs:
    """One stack's view of a call.

    Attributes:
        batch, length: shape of the tokens that this forward computes.
        past: how many slots the cache holds before them.
        past_known: whether that is known; a state of fixed size does not say how many tokens went into it, and a paged
            cache holds many sequences.
        past_told: whether the cache says it, or is one that goes on where it ended; with another it is only known what
            has gone into it.
        cached: whether a cache was passed, empty or not.
        attention_mask: as passed, 2-D, 4-D, or a dict of 4-D masks.
        position_ids, cu_seq_lens, labels, input_ids: as passed, where passed.
        past_ids: `[batch, past]`, ids of the cached tokens, where they are known.
        device: of the tokens.
    """

    batch: int
    length: int
    device: torch.device
    past: int = 0
    past_known: bool = True
    past_told: bool = True
    cached: bool = False
    attention_mask: Any = None
    position_ids: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    labels: Tensor | None = None
    input_ids: Tensor | None = None
    past_ids: Tensor | None = None

    @property
    def continues(self) -> bool:
        """Whether these tokens stand on top of others in a cache."""
        return self.past > 0 or not self.past_known

    def slots(self, prompt_width: int | None = None) -> int:
        """Absolute slots that matter: the cached ones, this forward's, and the rest of a prompt known to be longer."""
        end, width = self.past + self.length, prompt_width or 0
        return end if end >= width else width  # no max(): inductor cannot write one of a symbolic size


def call_inputs(
    call: Mapping[str, Any], role: str, *, seen: int | None = None, alone: bool = False, labels_are_tokens: bool = True
) -> CallInputs | None:
    """A stack's view of a bound call of its model; None when the call does not run that stack.

    In an encoder-decoder the encoder's tokens are `input_ids`, the decoder's `decoder_input_ids`, or follow from
    `labels`, or from `input_ids`, shifted: so BART and T5 classify, and find answers.

    Args:
        call: arguments by name.
        role: of the stack.
        seen: how many tokens went into the cache, for caches that do not say, or not to a graph.
        alone: whether a stack is called by itself, so that its tokens have plain names.
        labels_are_tokens: whether the model makes a decoder's tokens of `labels`; a classifier's are none.
    """
    if role == "encoder":
        if call.get("encoder_outputs") is not None:
            return None
        tokens = _first(call, "input_ids", "inputs_embeds", "input_features", "inputs")
        if not _runs(tokens):
            return None
        batch, length, *_ = tokens.shape
        return CallInputs(
            batch, length, tokens.device, attention_mask=call.get("attention_mask"), input_ids=_ids(tokens)
        )
    if role == "decoder" and not alone:
        labels = call.get("labels") if labels_are_tokens else None
        tokens = _first(call, "decoder_input_ids", "decoder_inputs_embeds")
        ids = _ids(tokens)  # made from labels they are the labels, shifted: not ours to know
        mask = call.get("decoder_attention_mask")
        if tokens is None and labels is not None:
            tokens = labels
        elif tokens is None:
            tokens = call.get("input_ids")
            mask = _shifted(call.get("attention_mask")) if mask is None else mask
    else:
        labels = call.get("labels")
        tokens = _first(call, "input_ids", "inputs_embeds", "pixel_values", "inputs")
        mask = call.get("attention_mask")
        ids = _ids(tokens)
        if tokens is None:
            tokens = next((value for value in call.values() if isinstance(value, Tensor) and value.dim() > 1), None)
    if not _runs(tokens):
        return None
    cache = cache_of(call)
    told = past_length(cache, seen=seen)
    past = seen if told is None else told
    batch, length, *_ = tokens.shape
    return CallInputs(
        batch,
        length,
        tokens.device,
        attention_mask=mask,
        past=past or 0,
        past_known=past is not None,
        past_told=told is not None or is_known(call),
        cached=cache is not None,
        position_ids=call.get("position_ids") if role == "only" else None,
        cu_seq_lens=_first(call, "cu_seq_lens_q", "cu_seqlens_q"),
        labels=labels,
        input_ids=ids,
    )


def rows_of_choices(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call with several choices a question, `[batch, choices, seq]`, as the rows that the model computes."""
    return {name: _one_row_each(name, value) for name, value in call.items()}


def _one_row_each(name: str, value: Any) -> Any:
    axes = _OF_CHOICES.get(name)
    return value.flatten(0, 1) if axes is not None and isinstance(value, Tensor) and value.dim() == axes else value


def _shifted(mask: Any) -> Any:
    """The mask of tokens that the model makes of the encoder's, which it does not pass on."""
    return shifted_right(mask) if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _runs(tokens: Any) -> TypeGuard[Tensor]:
    """Whether these are tokens, `[batch, seq, …]`."""
    return isinstance(tokens, Tensor) and tokens.dim() >= 2


def _ids(tokens: Any) -> Tensor | None:
    return tokens if isinstance(tokens, Tensor) and tokens.dim() == 2 and not tokens.is_floating_point() else None


def _first(call: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if call.get(name) is not None:
            return call[name]
    return None
