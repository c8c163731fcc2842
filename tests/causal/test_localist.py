"""Localist search goes through every set of units of a size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from peft_reft.causal import (
    Pair,
    Site,
    every_pair,
    interchange_accuracy,
    localist_search,
    sample_pairs,
)
from peft_reft.hub_format.errors import CausalModelError

from .test_accuracy import AND, decode, encode


class Spread(nn.Module):
    """P is in neurons 1 and 3 of five, half in each; Q in neuron 0."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 5, bias=False)
        self.hidden.weight = nn.Parameter(torch.tensor([[0.0, 1], [0.5, 0], [0, 0], [0.5, 0], [0, 0]]))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(inputs)
        return hidden[:, 1] + hidden[:, 3] + hidden[:, 0] - 1.75


PAIRS = list(every_pair(AND, ["A"]))


def test_the_best_set_is_the_one_that_holds_the_variable() -> None:
    ranked = localist_search(
        Spread(), AND, Site(module="hidden"), "A", 2, PAIRS, encode=encode, decode=decode, width=5
    )
    assert ranked[0] == ((1, 3), 1.0)
    assert {units for units, _ in ranked} == set(itertools.combinations(range(5), 2))
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    assert ranked[1][1] < 1.0
    for units, value in ranked:
        alone = {"A": Site(module="hidden", units=units)}
        assert interchange_accuracy(Spread(), AND, alone, PAIRS, encode=encode, decode=decode).value == value


def test_what_it_cannot_go_through_is_refused() -> None:
    def tried(size: int, width: int, pairs: list[Pair]) -> None:
        localist_search(
            Spread(), AND, Site(module="hidden"), "A", size, pairs, encode=encode, decode=decode, width=width
        )

    with pytest.raises(CausalModelError, match="5200300 sets"):
        tried(12, 25, PAIRS)
    for size in (0, 6):
        with pytest.raises(CausalModelError, match="0 sets"):
            tried(size, 5, PAIRS)
    with pytest.raises(CausalModelError, match="'A' alone"):
        tried(1, 5, sample_pairs(AND, ["A", "B"], 20, seed=0))
