"""A run that leaves no trace: the next run draws the same random numbers and finds the same cache.

So an interchange with a source that equals the base changes no bit in training mode either, where dropout draws.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.evaluating import device_of
from peft_reft.training.checkpointing import checkpoint_flag, recomputes_hooks

__all__ = ["own_cache", "recomputing_nothing", "same_draws"]

_CACHES = ("past_key_values", "cache_params")


@contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """The global random generators afterwards are as they were before; nothing is done for a model in eval mode."""
    if not any(module.training for module in model.modules()):
        yield
        return
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def own_cache(inputs: Any) -> Any:
    """Inputs with a copy of the cache in them, which a forward of transformers would extend in place.

    Raises:
        ConfigError: a cache that holds tensors of a graph.
    """
    if not isinstance(inputs, Mapping) or all(inputs.get(name) is None for name in _CACHES):
        return inputs
    try:
        return {name: copy.deepcopy(value) if name in _CACHES else value for name, value in inputs.items()}
    except RuntimeError as error:
        raise ConfigError(
            "the inputs hold a cache with gradients",
            code="causal.cache",
            rule="each source runs on a copy of the cache it is given",
            fix="make the cache under torch.no_grad()",
        ) from error


@contextmanager
def recomputing_nothing(model: nn.Module, paths: list[str]) -> Iterator[None]:
    """Blocks around these modules are not checkpointed: their hooks would be off when the backward pass recomputes.

    A block's own hooks are outside of what is recomputed, but for transformers before 5.20 or so.
    """
    own = 1 if recomputes_hooks() else 0
    around = {
        ".".join(parts[:end]) for path in paths for parts in [path.split(".")] for end in range(len(parts) + own)
    }
    blocks = [
        (module, flag)
        for path, module in model.named_modules()
        if path in around and (flag := checkpoint_flag(module)) is not None
    ]
    for block, flag in blocks:
        setattr(block, flag, False)
    try:
        yield
    finally:
        for block, flag in blocks:
            setattr(block, flag, True)
