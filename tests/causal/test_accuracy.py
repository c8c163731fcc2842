"""Pairs and the interchange accuracy: exact counts, the interval, batches, chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_reft.causal import (
    Accuracy,
    CausalModel,
    Distribution,
    Pair,
    Rotation,
    Site,
    every_pair,
    interchange_accuracy,
    sample_pairs,
    wilson_interval,
)
from peft_reft.hub_format.errors import CausalModelError

from .test_interchange import Conjunction

AND = CausalModel(
    {"A": lambda P: P, "B": lambda Q: Q, "V": lambda A, B: A and B}, inputs={"P": (False, True), "Q": (False, True)}
)
OR = CausalModel(
    {"A": lambda P: P, "B": lambda Q: Q, "V": lambda A, B: A or B}, inputs={"P": (False, True), "Q": (False, True)}
)


def encode(rows: Sequence[Any]) -> Tensor:
    return torch.tensor([[row["P"], row["Q"]] for row in rows], dtype=torch.float32)


def decode(output: Tensor) -> Tensor:
    return output > 0


def turned() -> dict[str, Site]:
    space = Rotation(Conjunction().turn.T)
    return {name: Site(module="hidden", space=space, units=[unit]) for unit, name in enumerate("AB")}


PLAIN = {name: Site(module="hidden", units=[unit]) for unit, name in enumerate("AB")}


def measured(
    alignment: dict[str, Site], pairs: list[Pair], causal_model: CausalModel = AND, **further: Any
) -> Accuracy:
    network: nn.Module = further.pop("network", None) or Conjunction()
    return interchange_accuracy(network, causal_model, alignment, pairs, encode=encode, decode=decode, **further)


@pytest.mark.parametrize("variables", [["A"], ["B"], ["A", "B"]], ids=str)
def test_the_rotated_alignment_of_the_conjunction_is_exact(variables: list[str]) -> None:
    found = measured(turned(), list(every_pair(AND, variables)))
    assert (found.correct, found.total) == (4 ** (1 + len(variables)),) * 2
    assert found.value == 1.0
    assert measured(turned(), list(every_pair(AND, variables)), OR).value < 1.0


def test_accuracy_counts_by_hand() -> None:
    """Of the 16 pairs for A, one by one, the plain alignment misses those that this loop finds."""
    network, pairs = Conjunction(), list(every_pair(AND, ["A"]))
    correct = 0
    for pair in pairs:
        base, source = network.hidden(encode([pair.base])), network.hidden(encode([pair.sources["A"]]))
        value = bool(torch.stack([source[0, 0], base[0, 1]]).sum() - 1.8 > 0)
        correct += value == (pair.sources["A"]["P"] and pair.base["Q"])
    found = measured(PLAIN, pairs)
    assert (found.correct, found.total) == (correct, 16)
    assert correct < 16
    assert found.unchanged == 12 / 16  # 2 bases with Q, 2 sources with the other P, change it
    assert found.constant == 12 / 16  # true only where the base has Q and the source P
    ones = [pair for pair in pairs if pair.changes(AND)]
    assert (measured(PLAIN, ones).unchanged, measured(PLAIN, ones).constant, measured(PLAIN, ones).chance) == (
        0,
        0.5,
        0.5,
    )
    assert "of 16" in str(found)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batches_do_not_matter(batch_size: int) -> None:
    pairs = sample_pairs(AND, ["A", "B"], 50, seed=1)
    assert len({frozenset(pair.sources) for pair in pairs}) == 3
    assert measured(PLAIN, pairs, batch_size=batch_size) == measured(PLAIN, pairs)


def test_the_model_keeps_its_mode_and_runs_in_eval() -> None:
    class Modes(Conjunction):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(inputs)

    network = Modes()
    network.hidden.eval()
    measured(PLAIN, list(every_pair(AND, ["A"])), network=network)
    assert network.training
    assert not network.hidden.training


def test_the_share_of_changing_pairs() -> None:
    for share, wanted in ((0.0, 0), (0.5, 20), (1.0, 40)):
        pairs = sample_pairs(AND, ["A", "B"], 40, seed=3, changing=share)
        assert sum(pair.changes(AND) for pair in pairs) == wanted
    half = [pair.changes(AND) for pair in sample_pairs(AND, ["A", "B"], 40, seed=3, changing=0.5)]
    assert half != sorted(half, reverse=True)  # any stretch of them, as a batch or a split takes, holds both
    assert sample_pairs(AND, ["A"], 9, seed=3) == sample_pairs(AND, ["A"], 9, seed=3)
    assert sample_pairs(AND, ["A"], 9, seed=3) != sample_pairs(AND, ["A"], 9, seed=4)


def test_wilson_interval() -> None:
    """The ends are where the normal approximation of the test just rejects: |share − p| = z √(p(1 − p)/n)."""
    for correct, total in ((0, 10), (3, 10), (99, 100), (10, 10)):
        for end in wilson_interval(correct, total, 0.9):
            assert abs(abs(correct / total - end) - 1.6448536 * (end * (1 - end) / total) ** 0.5) < 1e-6
    assert wilson_interval(0, 10)[0] == 0.0
    assert 0 < wilson_interval(0, 10)[1] < 1


def test_refusals() -> None:
    pairs = list(every_pair(AND, ["A"]))
    with pytest.raises(CausalModelError, match="0 pairs"):
        measured(PLAIN, [])
    with pytest.raises(CausalModelError, match="one or more names"):
        sample_pairs(AND, [], 3, seed=0)
    with pytest.raises(CausalModelError, match="no variable"):
        sample_pairs(AND, ["Z"], 3, seed=0)
    with pytest.raises(CausalModelError, match="0 to 1"):
        sample_pairs(AND, ["A"], 3, seed=0, changing=2.0)
    constant = CausalModel({"V": lambda P: 1}, inputs={"P": (0, 1)})
    with pytest.raises(CausalModelError, match="changes the output"):
        sample_pairs(constant, ["P"], 3, seed=0, changing=1.0)
    with pytest.raises(CausalModelError, match="gave 1 values for 16 rows"):
        interchange_accuracy(Conjunction(), AND, PLAIN, pairs, encode=encode, decode=lambda output: [True])
    with pytest.raises(CausalModelError, match=r"shape \[16, 1\] for 16 rows"):
        interchange_accuracy(
            Conjunction(), AND, PLAIN, pairs, encode=encode, decode=lambda output: output[:, None] > 0
        )
    with pytest.raises(CausalModelError, match="'no' where the causal model says False"):
        interchange_accuracy(Conjunction(), AND, PLAIN, pairs, encode=encode, decode=lambda output: ["no"] * 16)
    coin = CausalModel(
        {"A": lambda P: P, "V": lambda A, Q: Distribution.uniform([A, Q])}, inputs={"P": (0, 1), "Q": (0, 1)}
    )
    with pytest.raises(CausalModelError, match="outputs that are certain"):
        measured(PLAIN, list(every_pair(coin, ["A"])), coin)
    with pytest.raises(CausalModelError, match="confidence"):
        wilson_interval(3, 2)
