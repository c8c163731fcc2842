"""Examples as token rows, and batches of them: right-padded, labels on the answer and its end alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from benchmarks.skills.skill import Example

from .base import Base

__all__ = ["Row", "batch_of", "drawn", "encode", "in_batches"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of a prompt and of an answer with its end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode(base: Base, examples: Sequence[Example]) -> list[Row]:
    """The rows of examples; prompt and answer are tokenised apart, as generation sees them."""
    if not examples:
        return []
    prompts = base.tokenizer([base.ask(e.prompt) for e in examples], add_special_tokens=False)["input_ids"]
    answers = base.tokenizer([e.answer + base.end for e in examples], add_special_tokens=False)["input_ids"]
    return [Row(tuple(prompt), tuple(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def batch_of(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `labels`, each long `[batch, seq]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row.prompt + row.answer)
        mask[number, : len(row)] = 1
        labels[number, len(row.prompt) : len(row)] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def in_batches(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Numbers of rows, those of like length together, `size` at a time."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def drawn(
    rows: Sequence[Row], size: int, steps: int, seed: int, *, replay: Sequence[Row] = (), share: float = 0.0
) -> Iterator[list[Row]]:
    """The rows of each step: an epoch after the other, shuffled; a place is a replayed row with chance `share`.

    Args:
        rows: of the skill that is learnt.
        size: of a batch.
        steps: batches.
        seed: of the order; the same order for every method.
        replay: rows of former skills.
        share: of a batch, on average.
    """
    random, other = Random(seed), Random(seed + 1)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            epoch = list(range(len(rows)))
            random.shuffle(epoch)
            order += epoch
        taken, order = order[:size], order[size:]
        yield [other.choice(replay) if replay and other.random() < share else rows[number] for number in taken]
