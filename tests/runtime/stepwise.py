"""Decoding the slow way: one row, no padding, no cache, every forward told its locations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from positions.reference import edited_tokens


def locations_for(spec: str, prompt: int, total: int, *, generated: bool = True) -> Tensor:
    """`intervention_locations` `[1, 1, k]` of a tied adapter for a row of `total` tokens that starts with a prompt."""
    tokens = set().union(*edited_tokens(spec, [[True] * total], width=prompt))
    columns = sorted(column for _, column in tokens if generated or column < prompt)
    return torch.tensor(columns or [-1])[None, None]


@torch.no_grad()
def next_log_probabilities(model: PeftModel, spec: str, prompt: int, ids: Tensor) -> Tensor:
    """Log probabilities `[vocabulary]` of the token after `ids` `[length]`."""
    said = locations_for(spec, prompt, len(ids))
    logits = model(input_ids=ids[None], use_cache=False, intervention_locations=said).logits
    return logits[0, -1].log_softmax(-1)


def greedy(model: PeftModel, spec: str, prompt: Tensor, steps: int) -> list[int]:
    """The `steps` tokens that follow a prompt `[length]`."""
    ids = prompt
    for _ in range(steps):
        best = next_log_probabilities(model, spec, len(prompt), ids).argmax()
        ids = torch.cat([ids, best[None]])
    return ids[len(prompt) :].tolist()


def beams(model: PeftModel, spec: str, prompt: Tensor, steps: int, count: int) -> list[list[int]]:
    """The `count` best continuations of a beam search, best first; no token ends a sequence."""
    found: list[tuple[float, Tensor]] = [(0.0, prompt)]
    for _ in range(steps):
        longer = []
        for score, ids in found:
            scores = next_log_probabilities(model, spec, len(prompt), ids) + score
            longer += [
                (float(value), torch.cat([ids, token[None]])) for value, token in zip(*scores.topk(count), strict=True)
            ]
        found = sorted(longer, key=lambda entry: -entry[0])[:count]
    return [ids[len(prompt) :].tolist() for _, ids in found]


def rows_of(ids: Tensor, mask: Tensor) -> Sequence[Tensor]:
    """The real tokens of each row."""
    return [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
