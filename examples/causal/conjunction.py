"""The boolean conjunction of the paper on distributed alignment search (arXiv 2303.02536, section 2).

A network computes P and Q on two neurons that are turned by 20 degrees. Exchanging a neuron does not exchange P or Q;
exchanging a coordinate of the turned space does, for every input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    CausalModel,
    Distribution,
    Pair,
    Rotation,
    Site,
    class_loss,
    every_pair,
    interchange_accuracy,
    sample_pairs,
)

__all__ = ["AND", "PAIRS", "XOR", "Conjunction", "angle", "measured", "searched", "searched_exactly", "turned"]

_TRUTH = {"P": (False, True), "Q": (False, True)}
AND = CausalModel({"A": lambda P: P, "B": lambda Q: Q, "V": lambda A, B: A and B}, inputs=_TRUTH)
XOR = CausalModel(
    {"A": lambda P, Q: P != Q, "B": lambda Q: Q, "V": lambda A, B: B and not A},
    inputs=_TRUTH,
)
"""The same function by another way, which this network does not take: A is the exclusive or."""


class Conjunction(nn.Module):
    """h = R(20°)(P, Q); true where h₁ + h₂ > 1.8.

    Args:
        seed: None for the network of the paper; else random weights, an untrained one.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 2, bias=False)
        self.threshold = 1.8
        weight = turn(20)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            weight = 0.3 * torch.randn(2, 2, generator=generator)
            self.threshold = float(0.3 * torch.randn((), generator=generator))
        self.hidden.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Score `[batch]` of `[batch, 2]`, true above 0."""
        hidden: Tensor = self.hidden(inputs)
        return hidden.sum(-1) - self.threshold


def turn(degrees: float) -> Tensor:
    """A rotation of the plane."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def turned(degrees: float) -> dict[str, Site]:
    """A and B as the two coordinates of a space turned by so much; 0 degrees are the neurons themselves."""
    space = Rotation(turn(degrees).mT.contiguous())
    return {name: Site(module="hidden", space=space, units=[unit]) for unit, name in enumerate("AB")}


def encode(rows: Sequence[Any]) -> Tensor:
    """Inputs of the causal models → `[batch, 2]`."""
    return torch.tensor([[row["P"], row["Q"]] for row in rows], dtype=torch.float32)


def decode(scores: Tensor) -> Tensor:
    """True above 0."""
    return scores > 0


def loss(scores: Tensor, labels: Sequence[bool]) -> Tensor:
    """Binary cross-entropy; the scores are stretched, for the network's threshold is a narrow one."""
    return binary_cross_entropy_with_logits(10 * scores, torch.tensor(labels, dtype=torch.float32))


PAIRS: list[Pair] = [pair for names in (["A"], ["B"], ["A", "B"]) for pair in every_pair(AND, names)]
"""All 96 interchanges: of A, of B, of both from two sources."""


def measured(alignment: dict[str, Site], network: Conjunction | None = None) -> Accuracy:
    """Accuracy of an alignment over all interchanges."""
    return interchange_accuracy(network or Conjunction(), AND, alignment, PAIRS, encode=encode, decode=decode)


def searched(
    seed: int,
    causal_model: CausalModel = AND,
    variables: Sequence[str] = ("A", "B"),
    *,
    network: Conjunction | None = None,
    restarts: int = 2,
) -> tuple[AlignmentSearch, Accuracy]:
    """Variables sought, one dimension each, and the accuracy of what was found.

    The accuracy is over other pairs, of which half change the output: doing nothing gets a half.
    """
    search = AlignmentSearch(
        network or Conjunction(),
        causal_model,
        Site(module="hidden"),
        dict.fromkeys(variables, 1),
        encode=encode,
        loss=loss,
        seed=seed,
    )
    search.fit(
        sample_pairs(causal_model, variables, 400, seed=seed, changing=0.5),
        steps=150,
        learning_rate=0.05,
        batch_size=64,
        seed=seed,
        validation=sample_pairs(causal_model, variables, 200, seed=seed + 1_000_000, changing=0.5),
        decode=decode,
        restarts=restarts,
    )
    test = sample_pairs(causal_model, variables, 400, seed=seed + 2_000_000, changing=0.5)
    return search, search.accuracy(test, decode=decode)


def searched_exactly(seed: int) -> AlignmentSearch:
    """The same against the distributions that the network itself gives for each A and B, by their KL divergence.

    Against certain values every angle in a range is right for every input. Against distributions 20 degrees are the
    only ones where nothing is left of the loss.
    """
    search = AlignmentSearch(
        Conjunction(),
        SURE,
        Site(module="hidden"),
        {"A": 1, "B": 1},
        encode=encode,
        loss=class_loss((False, True), logits=_logits, kl=True),
        seed=seed,
    )
    pairs = sample_pairs(SURE, ["A", "B"], 400, seed=seed, changing=0.5)
    search.fit(pairs, steps=200, learning_rate=0.05, batch_size=64, seed=seed)
    return search


def _logits(scores: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(scores), 10 * scores], -1)


def _sure(first: bool, second: bool) -> Distribution:
    with torch.no_grad():
        true = float(torch.sigmoid(10 * Conjunction()(torch.tensor([[float(first), float(second)]]))))
    return Distribution({True: true, False: 1 - true})


_SURE = {(first, second): _sure(first, second) for first in (False, True) for second in (False, True)}
SURE = CausalModel({"A": lambda P: P, "B": lambda Q: Q, "V": lambda A, B: _SURE[A, B]}, inputs=_TRUTH)
"""P and Q, as sure of it as the network is."""


def angle(search: AlignmentSearch) -> float:
    """By how many degrees the first row that was found is turned, 0 to 180 (a row and its opposite are one)."""
    across, up = search.rotation[0].tolist()
    return math.degrees(math.atan2(up, across)) % 180
