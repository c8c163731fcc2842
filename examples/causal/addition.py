"""The sum of three numbers: S1 = X + Y, S2 = S1 + Z, sought in a small network that was trained on the sums alone.

The network reads X and Y first and Z later: a first layer that saw all three could hold nothing but X + Y + Z, and
then there would be no S1 to exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    CausalModel,
    Pair,
    Site,
    class_loss,
    interchange_accuracy,
    sample_pairs,
)

__all__ = ["PREFIX", "SITE", "SUM", "Adder", "best_units", "decode", "encode", "searched", "trained"]

NUMBERS = range(5)
SUMS = range(3 * (len(NUMBERS) - 1) + 1)
_INPUTS = dict.fromkeys("XYZ", NUMBERS)
SUM = CausalModel({"S1": lambda X, Y: X + Y, "S2": lambda S1, Z: S1 + Z}, inputs=_INPUTS)
PREFIX = CausalModel({"S1": lambda X: X, "S2": lambda S1, Y, Z: S1 + Y + Z}, inputs=_INPUTS)
"""Another model of the same sums, and a wrong one of this network: its S1 is X alone."""
SITE = Site(module="first")


class Adder(nn.Module):
    """X and Y → `hidden` numbers; they and Z → a score for each sum."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        count = len(NUMBERS)
        self.first = nn.Sequential(nn.Linear(2 * count, 64), nn.ReLU(), nn.Linear(64, hidden))
        self.last = nn.Sequential(nn.Linear(hidden + count, 64), nn.ReLU(), nn.Linear(64, len(SUMS)))

    def forward(self, numbers: Tensor) -> Tensor:
        """Scores `[batch, sums]` of `[batch, 3]`."""
        known = one_hot(numbers, len(NUMBERS)).float()
        scores: Tensor = self.last(torch.cat([self.first(known[:, :2].flatten(1)), known[:, 2]], 1))
        return scores


def encode(rows: Sequence[Any]) -> Tensor:
    """Inputs of the causal models → `[batch, 3]`."""
    return torch.tensor([[row[name] for name in "XYZ"] for row in rows])


def decode(scores: Tensor) -> Tensor:
    """The sum with the highest score."""
    return scores.argmax(-1)


def trained(seed: int, steps: int = 300) -> Adder:
    """A network trained on every input, from a seed; with no steps an untrained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Adder()
    inputs = list(SUM.every_input())
    numbers, sums = encode(inputs), torch.tensor([SUM.run(row)["S2"] for row in inputs])
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(network(numbers), sums).backward()
        optimiser.step()
    return network.eval()


def searched(
    network: Adder, causal_model: CausalModel, dimension: int, seed: int, steps: int = 300
) -> tuple[AlignmentSearch, Accuracy]:
    """S1 sought in so many dimensions; its accuracy on pairs that the search has not seen."""
    search = AlignmentSearch(
        network,
        causal_model,
        SITE,
        {"S1": dimension},
        encode=encode,
        loss=class_loss(SUMS, logits=lambda scores: scores),
        seed=seed,
    )
    held_out = set(map(repr, pairs_kept_back(causal_model)))
    drawn = sample_pairs(causal_model, ["S1"], 2000, seed=seed, changing=0.9)
    search.fit(
        [pair for pair in drawn if repr(pair) not in held_out],
        steps=steps,
        learning_rate=0.05,
        batch_size=128,
        seed=seed,
    )
    return search, search.accuracy(pairs_kept_back(causal_model), decode=decode)


def pairs_kept_back(causal_model: CausalModel) -> list[Pair]:
    """1000 pairs whose sum changes under the interchange."""
    return sample_pairs(causal_model, ["S1"], 1000, seed=12345, changing=1.0)


def best_units(network: Adder, dimension: int) -> tuple[tuple[int, ...], Accuracy]:
    """Localist search: neurons added one by one, each time the one that helps most; every choice is measured."""
    chosen: tuple[int, ...] = ()
    pairs = pairs_kept_back(SUM)
    best = None
    for _ in range(dimension):
        tried = {
            (*chosen, unit): interchange_accuracy(
                network, SUM, {"S1": Site(module="first", units=(*chosen, unit))}, pairs, encode=encode, decode=decode
            )
            for unit in range(16)
            if unit not in chosen
        }
        chosen = max(tried, key=lambda units: tried[units].value)
        best = tried[chosen]
    assert best is not None
    return chosen, best
