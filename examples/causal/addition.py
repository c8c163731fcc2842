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
    InterchangeDataset,
    Site,
    interchange_accuracy,
    localist_search,
    sample_pairs,
)

from .trial import Fit, found, share_right

__all__ = ["SITE", "SUM", "WRONG", "Adder", "best_units", "decode", "encode", "right", "searched", "trained"]

NUMBERS = range(5)
SUMS = range(3 * (len(NUMBERS) - 1) + 1)
_INPUTS = dict.fromkeys("XYZ", NUMBERS)
SUM = CausalModel({"S1": lambda X, Y: X + Y, "S2": lambda S1, Z: S1 + Z}, inputs=_INPUTS)
WRONG = CausalModel({"S1": lambda Y, Z: Y + Z, "S2": lambda X, S1: X + S1}, inputs=_INPUTS)
"""The same sums by another way, which this network cannot take: it reads Z after the layer that is looked at."""
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


def trained(seed: int, steps: int = 400) -> Adder:
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


def right(network: Adder) -> float:
    """The share of all inputs that it adds up rightly."""
    return share_right(network, SUM, encode=encode, decode=decode)


def searched(
    network: Adder, seed: int, causal_model: CausalModel = SUM, *, dimension: int = 6, restarts: int = 2
) -> tuple[AlignmentSearch, Accuracy]:
    """S1 sought in so many dimensions; its accuracy on pairs that neither the fit nor the choice of a start saw."""
    search = found(
        network,
        causal_model,
        SITE,
        {"S1": dimension},
        drawn,
        seed=seed,
        classes=SUMS,
        fit=Fit(steps=300, learning_rate=0.05, batch_size=128, restarts=restarts),
        encode=encode,
        decode=decode,
    )
    return search, search.accuracy(held_out(causal_model, seed), decode=decode)


def drawn(causal_model: CausalModel, seed: int, count: int) -> InterchangeDataset:
    """Pairs of which nine in ten change the sum."""
    pairs = sample_pairs(causal_model, ["S1"], count, seed=seed, changing=0.9)
    return InterchangeDataset.from_pairs(causal_model, pairs)


def held_out(causal_model: CausalModel, seed: int) -> InterchangeDataset:
    """1000 pairs that all change the sum, from draws of their own: to change nothing gets none of them right."""
    pairs = sample_pairs(causal_model, ["S1"], 1000, seed=seed + 2_000_000, changing=1.0)
    return InterchangeDataset.from_pairs(causal_model, pairs)


def best_units(
    network: Adder, seed: int, size: int, *, module: str = "first", width: int = 16
) -> tuple[tuple[int, ...], Accuracy]:
    """Localist search by brute force: the best of all sets of `size` neurons, measured again on the held-out pairs."""
    choosing = InterchangeDataset(drawn(SUM, seed, 3000).items[:200])
    ranked = localist_search(
        network, SUM, Site(module=module), "S1", size, choosing, encode=encode, decode=decode, width=width
    )
    units = ranked[0][0]
    site = Site(module=module, units=units)
    return units, interchange_accuracy(network, SUM, {"S1": site}, held_out(SUM, seed), encode=encode, decode=decode)
