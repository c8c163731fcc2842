"""What a cache tells of the tokens that went before, and the one thing that is noted on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import PromptBoundaryError

__all__ = ["cache_of", "hidden_cache", "is_known", "is_marked", "mark_cache", "past_length", "unknown_length"]

_NAMES = ("past_key_values", "cache_params", "state", "cache", "mems")
"""What models call the cache that they take: attention's, a state space's, RWKV's, the one of continuous batching,
XLNet's, which holds the inputs of its blocks."""
_PLAIN = frozenset({bool, int, float, str, Tensor, type(None)})
_OF_A_CACHE = frozenset({"past", "mem", "mems", "memory", "memories", "cache", "caches", "state", "states"})
_OF_OTHERS = frozenset({"hidden", "encoder", "cross", "length", "position", "positions", "mask", "use", "output"})

_MARK = "_reft_counts_from_end"


def cache_of(call: Mapping[str, Any]) -> Any:
    """The cache that a call was given, or None.

    A model may call it as it likes (Reformer's `past_buckets_states`, XLNet's `mems`): what is named or made like a
    cache counts as one. It then says how long it is, or the call is refused where that matters.
    """
    for name in _NAMES:
        if call.get(name) is not None:
            return call[name]
    for name, value in call.items():
        if type(value) not in _PLAIN and _is_cache(name, value):
            return value
        if type(value) is Tensor and value.dim() > 2 and _names_a_cache(name):
            return value
    return None


def is_known(call: Mapping[str, Any]) -> bool:
    """Whether a call's cache has a name of which it is known that the tokens follow on what went into it."""
    return any(call.get(name) is not None for name in _NAMES)


def _is_cache(name: str, value: Any) -> bool:
    if hasattr(value, "get_seq_length") or "Cache" in type(value).__name__:
        return True
    return isinstance(value, (tuple, list, Mapping)) and len(value) > 0 and _names_a_cache(name)


def _names_a_cache(name: str) -> bool:
    words = name.split("_")
    return any(word in _OF_A_CACHE for word in words) and not any(word in _OF_OTHERS for word in words)


def past_length(cache: Any, *, seen: int | None = None) -> int | None:
    """How many slots a cache holds; None where it does not say: a state of fixed size, a cache of many sequences.

    Args:
        cache: or None.
        seen: how many tokens went into it, where that is known. A static cache counts in a tensor, of which a graph
            cannot make sizes; there this number is taken instead.
    """
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            length = cache.get_seq_length()
        except ValueError:  # transformers' answer of a cache without a single attention layer
            return None if cache.has_previous_state() else 0
        if seen is not None and isinstance(length, Tensor) and torch.compiler.is_compiling():
            return seen
        return None if length is None else int(length)  # Reformer's does not count
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):  # older: (keys, values)
        return int(cache[0][0].shape[-2])
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], Tensor) and cache[0].dim() == 3:
        return int(cache[0].shape[0])  # mems: [cached, batch, hidden] for each block
    return None


def unknown_length() -> PromptBoundaryError:
    """The refusal of a cache that does not say how many tokens went into it."""
    return PromptBoundaryError(
        "tokens continue a cache that does not say how many went before",
        code="positions.cache_length",
        rule="positions count from the sequence's start, which a state of fixed size and a paged cache do not tell",
        fix="call generate with the whole prompt, or pass no cache; for continuous batching use the manager of the "
        "model's own init_continuous_batching or generate_batch",
    )


def hidden_cache(length: int, seen: int) -> PromptBoundaryError:
    """The refusal of a generation that goes on with a few tokens where no argument holds those before."""
    return PromptBoundaryError(
        f"a generation goes on with {length} of its tokens after {seen}, and no argument of the call holds a cache",
        code="positions.cache_unknown",
        value=length,
        rule="a forward without a cache computes the whole prompt again; the cache is past_key_values, or an argument "
        "that is named or made like one",
        fix="call generate with use_cache=False, or give the model's forward a past_key_values",
    )


def mark_cache(output: Any) -> None:
    """Note on the cache in a forward's output that it holds edits which count from a prompt's end.

    The note belongs to the cache, goes with its copies, and is read when a generation continues from it.
    """
    if torch.compiler.is_compiling():
        return
    values = output if isinstance(output, tuple) else [getattr(output, name, None) for name in _NAMES]
    for value in values:
        if hasattr(value, "get_seq_length"):
            setattr(value, _MARK, True)


def is_marked(cache: Any) -> bool:
    """Whether a cache holds edits which count from a prompt's end."""
    return bool(getattr(cache, _MARK, False))
