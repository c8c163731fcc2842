"""A task on a tiny language model: prompts `1 … 1 T U 2` of different lengths, answered as the network itself does."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from peft_reft.causal import Answers, CausalModel, InterchangeDataset, sample_pairs

from .networks import llama

TOKENS, LENGTHS = range(3, 11), range(1, 4)
ANSWERS = range(20, 28)


def row(values: Any) -> dict[str, Any]:
    """T is the third token from the end, whose index is under `at`."""
    return {"input_ids": [1] * values["K"] + [values["T"], values["U"], 2], "at": values["K"]}


def answers() -> Answers:
    return Answers(llama(), {str(token): token for token in ANSWERS})


def task(network: Answers) -> CausalModel:
    """V of A = T, B = U and the length is what the network says."""
    table: dict[Any, str] = {}
    for length in LENGTHS:
        inputs = list(itertools.product(TOKENS, TOKENS))
        batch = torch.tensor([row({"T": t, "U": u, "K": length})["input_ids"] for t, u in inputs])
        with torch.no_grad():
            found = network.decode(network(batch))
        table.update({(t, u, length): value for (t, u), value in zip(inputs, found, strict=True)})
    return CausalModel(
        {"A": lambda T: T, "B": lambda U: U, "V": lambda A, B, K: table[A, B, K]},
        inputs={"T": TOKENS, "U": TOKENS, "K": LENGTHS},
    )


def prompts(causal_model: CausalModel, names: list[str], count: int, seed: int) -> InterchangeDataset:
    return InterchangeDataset.from_pairs(causal_model, sample_pairs(causal_model, names, count, seed=seed), row=row)
