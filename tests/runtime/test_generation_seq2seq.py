"""`generate` of an encoder-decoder model against step-by-step decoding with stated locations."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from contract.tiny import reft_model, token_ids

from .stepwise import locations_for, rows_of

STEPS = 5
START = 0
SPECS = ("f2+l2", "l1", "f1", "all")


@cache
def model_for(spec: str, pattern: str | None = None) -> PeftModel:
    return reft_model("t5", dtype=torch.float64, positions=spec, layers_pattern=pattern)


def batch() -> dict[str, Tensor]:
    mask = torch.stack([(torch.arange(8) < length).long() for length in (8, 5, 3)])
    return {"input_ids": token_ids(3, 8, seed=3) * mask, "attention_mask": mask}


@torch.no_grad()
def stepwise(model: PeftModel, spec: str, row: Tensor, forced: list[int]) -> list[int]:
    """Greedy tokens after the start token and forced ones, for a source `[length]`."""
    ids = [START, *forced]
    prompt = len(ids)
    pattern = model.peft_config["default"].layers_pattern
    for _ in range(STEPS):
        said: Any = {
            "encoder": locations_for(spec, len(row), len(row)),
            "decoder": locations_for(spec, prompt, len(ids)),
        }
        if pattern is not None:
            said = said[pattern.split(".")[0]]  # a bare tensor means the only stack that is edited
        output = model(
            input_ids=row[None], decoder_input_ids=torch.tensor([ids]), use_cache=False, intervention_locations=said
        )
        ids.append(int(output.logits[0, -1].argmax()))
    return ids[prompt:]


HOW: dict[str, dict[str, Any]] = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("pattern", [None, "encoder.block", "decoder.block"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("forced", [(), (9, 11)])
def test_tokens_are_those_of_stepwise_decoding(
    spec: str, pattern: str | None, how: str, forced: tuple[int, ...]
) -> None:
    model, given = model_for(spec, pattern), batch()
    wanted = [stepwise(model, spec, row, list(forced)) for row in rows_of(given["input_ids"], given["attention_mask"])]
    start = torch.tensor([[START, *forced]] * 3)
    for decoder in [start, start[:, 1:]] if forced else [None]:  # with and without the start token
        found = model.generate(**given, decoder_input_ids=decoder, max_new_tokens=STEPS, do_sample=False, **HOW[how])
        assert found[:, 1 + len(forced) :].tolist() == wanted


def test_rows_are_repeated_for_returned_sequences() -> None:
    model, given = model_for("f2+l2"), batch()
    wanted = [stepwise(model, "f2+l2", row, []) for row in rows_of(given["input_ids"], given["attention_mask"])]
    found = model.generate(**given, max_new_tokens=STEPS, do_sample=True, top_k=1, num_return_sequences=2)
    assert found[:, 1:].tolist() == [row for row in wanted for _ in range(2)]
