"""`prompt_cache`: the keys and values of a prompt's head, edited once and used for all prompts that start with it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError, LocationError
from peft_reft.lookup import reft_layers
from peft_reft.runtime.past import cache_of, past_length
from peft_reft.runtime.state import state_of

from .prefill import recorded_prefill

__all__ = ["prompt_cache"]


def prompt_cache(model: nn.Module, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Any:
    """Run the head of a prompt through the model, and return its keys and values.

    For a long prefix that many prompts share, e.g. a system prompt. The head is edited as the start of a longer
    prompt: `f<n>`, `all`, `tok(…)` and windows that count from the start are inside; edits that count from the
    prompt's end (`l<n>`) are not, and fall on what follows.

    The cache is extended in place by whoever uses it: give each use its own copy.

    `generate` from it gives the tokens that it gives without it. A continuation shorter than `l<n>` makes a part of
    the cached head the prompt's end: that part is computed again where `generate` was given the ids of the whole
    prompt, and is an error where it was given only the new ones. So is a prompt with another head, and a cache made
    with other adapters, weights or scales.

    Args:
        model: a decoder-only model with ReFT adapters (a `PeftModel`, a `MixedReftModel`, or a model that loaded them
            with transformers' `load_adapter`), in eval mode.
        input_ids: long `[batch, seq]`; one row serves any batch through the cache's `batch_repeat_interleave`.
        attention_mask: `[batch, seq]`, 0 on padding; None if there is none.

    Returns:
        The model's cache, e.g. a `DynamicCache`, for `past_key_values`.

    Raises:
        ConfigError: an encoder-decoder, or a model whose cache does not say how many tokens it holds.
        LocationError: ids or a mask of the wrong shape.
        PromptBoundaryError: `turns="each"`, for which a head is no whole turn.

    Example:
        >>> head = prompt_cache(model, tokenizer(system_prompt, return_tensors="pt").input_ids)
        >>> inputs = tokenizer(f"{system_prompt} {question}", return_tensors="pt")
        >>> answer = model.generate(**inputs, past_key_values=copy.deepcopy(head))
    """
    reft_layers(model)  # refuses what is no module
    state = next((found for module in model.modules() if (found := state_of(module)) is not None), None)
    base = model if state is None else state.model
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            f"{type(base).__name__} is an encoder-decoder",
            rule="the cache of a decoder belongs to one encoder input",
            fix="call generate without a prompt cache",
        )
    _check_shapes(input_ids, attention_mask)
    call: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": True}
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        call["logits_to_keep"] = 1
    with torch.no_grad():
        output = base(**call) if state is None else recorded_prefill(state, call)
    cache = cache_of(output)
    if cache is None or past_length(cache) != input_ids.shape[1]:
        raise ConfigError(
            f"{type(base).__name__} returned a {type(cache).__name__}",
            rule="a prompt cache says how many tokens it holds, as the keys and values of attention do",
            fix="call generate without a prompt cache",
        )
    return cache


def _check_shapes(ids: Any, mask: Any) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.shape[1]:
        shape = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise LocationError(
            f"input_ids is {shape}", value=shape, rule="it is a LongTensor [batch, seq] of one or more"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise LocationError(f"attention_mask is {shape}", value=shape, rule=f"it is [batch, seq] = {list(ids.shape)}")
