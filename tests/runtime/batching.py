"""Requests through transformers' continuous batching, on a cache so small that prompts come in pieces and queue up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

from contract.features import paged
from contract.tiny import token_ids

from .stepwise import greedy

STEPS = 6
LENGTHS = (9, 6, 2, 13, 5, 1, 20)
"""Tokens of the prompts; with what is generated they are more than the small cache holds."""


def prompts(*, seed: int = 10) -> list[Tensor]:
    return [token_ids(1, length, seed=seed + number)[0] for number, length in enumerate(LENGTHS)]


def small(**settings: Any) -> ContinuousBatchingConfig:
    """Pages of 4 tokens, 8 of them, 8 tokens in a forward."""
    chosen = {"page_size": 4, "num_blocks": 8, "max_batch_tokens": 8, **settings}
    return ContinuousBatchingConfig(**paged(chosen))


def greedily(**how: Any) -> hf.GenerationConfig:
    return hf.GenerationConfig(**{"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": -1, **how})


def batched(model: Any, given: Sequence[Tensor], *, how: Any = None, **settings: Any) -> list[list[int]]:
    """The new tokens of every request."""
    outputs = model.generate_batch(
        inputs=[prompt.tolist() for prompt in given],
        generation_config=how or greedily(),
        continuous_batching_config=small(**settings),
    )
    assert [output.error for output in outputs.values()] == [None] * len(outputs)
    return [output.generated_tokens for output in outputs.values()]


def wanted(model: Any, spec: str, steps: int = STEPS) -> list[list[int]]:
    """What decoding step by step gives for `prompts()`."""
    return [greedy(model, spec, prompt, steps) for prompt in prompts()]


def check_tokens(model: Any, spec: str) -> None:
    """Prompts in pieces beside others that decode, and more than fit: some start over with what they said."""
    with counted("requeued") as requeued:
        found = batched(model, prompts())
    assert any(requeued)
    assert found == wanted(model, spec)


@contextmanager
def running(model: Any, **settings: Any) -> Iterator[Any]:
    """A manager at work."""
    with model.continuous_batching_context_manager(
        generation_config=greedily(), continuous_batching_config=small(**settings)
    ) as manager:
        yield manager


def answer(manager: Any, prompt: Sequence[int]) -> list[int]:
    """Send one request and wait for what it generates."""
    name = manager.add_request(list(prompt))
    result = next(manager.request_id_iter(name))
    assert result.error is None, result.error
    tokens: list[int] = result.generated_tokens
    return tokens


@contextmanager
def counted(kind: str) -> Iterator[list[int]]:
    """Prefix matches (their tokens), or requests put back into the queue (the tokens they had generated)."""
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        if kind == "shared":
            match = PagedAttentionCache.search_prefix_match

            def note(self: Any, *args: Any) -> int:
                seen.append(match(self, *args))
                return seen[-1]

            patch.setattr(PagedAttentionCache, "search_prefix_match", note)
        else:
            again = RequestState.create_equivalent_initial_request

            def remember(self: Any) -> Any:
                seen.append(self.generated_len())
                return again(self)

            patch.setattr(RequestState, "create_equivalent_initial_request", remember)
        yield seen


class Segments:
    """What a model was called with, forward by forward: (first position, tokens) of every request in it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.forwards: list[list[tuple[int, list[int]]]] = []
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True, prepend=True)

    def _note(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("cu_seq_lens_q") is None:  # a forward of something else
            return
        bounds = kwargs["cu_seq_lens_q"].tolist()
        ids, places = kwargs["input_ids"][0].tolist(), kwargs["position_ids"][0].tolist()
        self.forwards.append([(places[a], ids[a:b]) for a, b in itertools.pairwise(bounds)])

    def __enter__(self) -> list[list[tuple[int, list[int]]]]:
        return self.forwards

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
