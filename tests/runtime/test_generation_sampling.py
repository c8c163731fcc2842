"""Sampling with a seed gives what drawing step by step with that seed gives; assisted decoding keeps to one row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .stepwise import next_log_probabilities, rows_of
from .test_generation import NAMES, STEPS, WAYS, batch, generated, model_for

TEMPERATURE = 1.7
SEEDED: dict[str, dict[str, Any]] = {
    "cache": {},
    "no cache": {"use_cache": False},
    "chunks of 4": {"prefill_chunk_size": 4},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


def sampled(model: Any, spec: str, prompts: list[Tensor], seed: int) -> list[list[int]]:
    """Rows drawn together, one token each, from probabilities that are computed row by row without a cache."""
    rows = list(prompts)
    torch.manual_seed(seed)
    for _ in range(STEPS):
        scores = torch.stack(
            [next_log_probabilities(model, spec, len(prompt), row) for prompt, row in zip(prompts, rows, strict=True)]
        )
        drawn = torch.multinomial((scores.float() / TEMPERATURE).softmax(-1), 1)
        rows = [torch.cat([row, token]) for row, token in zip(rows, drawn, strict=True)]
    return [row[len(prompt) :].tolist() for prompt, row in zip(prompts, rows, strict=True)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "l4", "g[:2]", "all-f1"])
@pytest.mark.parametrize("way", SEEDED)
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_seed_draws_the_same_tokens(name: str, spec: str, way: str, sequences: int) -> None:
    model, given = model_for(name, spec), batch()
    prompts = [row for row in rows_of(given["input_ids"], given["attention_mask"]) for _ in range(sequences)]
    with torch.random.fork_rng():
        wanted = sampled(model, spec, prompts, seed=11)
        torch.manual_seed(11)
        how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "num_return_sequences": sequences}
        found = generated(model, given, **how, **SEEDED[way])
    assert found == wanted
    assert sequences == 1 or found[0] != found[1] or found[1] != found[2]


@pytest.mark.parametrize("way", ["prompt_lookup_num_tokens", "assistant_model"])
def test_transformers_drafts_for_one_row_only(way: str) -> None:
    """So there is no padded batch in which a draft could be taken for the prompt."""
    model = model_for("llama", "f2+l2")
    value = 3 if way == "prompt_lookup_num_tokens" else model.get_base_model()
    with pytest.raises(ValueError, match="batch_size = 1"):
        generated(model, batch(), **{way: value})
    assert WAYS["prompt lookup"](model) == WAYS["rows alone"](model)
