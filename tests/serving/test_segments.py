"""Rows cut into pieces: every row once, with its own slot, and the product over pieces is the product row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peft_reft.integrations.vllm.segments import cut, even_width

CPU = torch.device("cpu")


@pytest.mark.parametrize("runs", [[1], [3, 1, 1], [70, 2], [64, 65, 1], [5] * 9])
@pytest.mark.parametrize("widest", [1, 4, 64])
def test_every_row_is_in_one_piece_with_its_slot(runs: list[int], widest: int) -> None:
    generator = np.random.default_rng(len(runs))
    slots = np.repeat(generator.permutation(len(runs)) + 3, runs)
    places = generator.permutation(len(slots))
    made = cut(places, slots, CPU, widest=widest)
    width = made.places.shape[1]
    assert width <= widest
    pairs = {(int(made.places.reshape(-1)[at]), int(made.slots[at // width])) for at in made.filled.tolist()}
    assert pairs == set(zip(places.tolist(), slots.tolist(), strict=True))
    assert sorted(made.targets.tolist()) == list(range(len(slots)))
    assert torch.equal(made.places.reshape(-1)[made.filled], made.targets)


def test_filler_is_less_than_a_piece_for_each_slot() -> None:
    slots = np.repeat(np.arange(4), [1, 9, 4, 64])
    made = cut(np.arange(len(slots)), slots, CPU, widest=8)
    assert made.places.numel() - len(slots) < 8 * 4


@pytest.mark.parametrize(
    ("lengths", "width"),
    [([14], 14), ([14, 14, 28], 14), ([1, 1], 1), ([128, 64], 64), ([90, 90], 45), ([2, 3], 0), ([67, 67], 0)],
)
def test_even_pieces_cut_every_run_whole_or_there_are_none(lengths: list[int], width: int) -> None:
    assert even_width(np.array(lengths)) == width
