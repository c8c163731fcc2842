"""Batches that the checks run on, and how they are said to the slow reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tiny import token_ids

LENGTH = 9
PADDING = {
    "left": [(0, 9), (3, 9), (7, 9)],
    "right": [(0, 9), (0, 6), (0, 2)],
    "both": [(1, 8), (0, 5), (6, 9)],
}
"""Side → for each row where its real tokens start and stop."""
PROMPTS = [5, 3, 1]
"""Length of each row's prompt, where labels follow."""


def padded_batch(side: str) -> dict[str, Tensor]:
    """Ids and mask `[3, LENGTH]`, padded on a side."""
    columns = torch.arange(LENGTH)
    mask = torch.stack([(columns >= start) & (columns < stop) for start, stop in PADDING[side]]).long()
    return {"input_ids": token_ids(3, LENGTH) * mask, "attention_mask": mask}


def labels_after_prompts(mask: Tensor, prompts: list[int]) -> Tensor:
    """Labels −100 on the first tokens of each row, and on padding."""
    rank = mask.cumsum(1) - 1
    return torch.where(mask.bool() & (rank >= torch.tensor(prompts)[:, None]), 7, -100)


def flags(mask: Tensor) -> list[list[bool]]:
    return mask.bool().tolist()


def union(terms: list[set[tuple[int, int]]]) -> set[tuple[int, int]]:
    return set().union(*terms)


def packed_batch(form: str) -> tuple[dict[str, Tensor], list[list[int]]]:
    """One row of three sequences with prompts of 3, 2 and 4 tokens, as trainers pack it."""
    lengths, prompts = [6, 3, 7], [3, 2, 4]
    ids = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = torch.cat(
        [torch.where(torch.arange(n) < prompt, -100, 7) for n, prompt in zip(lengths, prompts, strict=True)]
    )[None]
    batch = {"input_ids": token_ids(1, sum(lengths)), "labels": labels}
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    batch["position_ids"] = ids
    if form == "cu_seq_lens":
        batch.update(cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=7, max_length_k=7)  # type: ignore[call-arg]
    if form == "with a mask":
        batch["attention_mask"] = torch.ones_like(ids)
    return batch, ids.tolist()


def said_positions(way: str, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The keyword that states positions, and how the reference is told the same."""
    if way == "prompt_lengths":
        return {way: torch.tensor(PROMPTS)}, {"lengths": PROMPTS}
    marks = ((mask.cumsum(1) <= torch.tensor(PROMPTS)[:, None]) & mask.bool()).long()
    return {way: marks}, {"mask": marks.tolist()}
