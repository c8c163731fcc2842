"""Hierarchical equality, (a == b) == (c == d), in a small transformer that was trained on the answers alone.

Its first block reads each pair by itself, its second block what the first has left at the end of each pair. What is
there may be whether the pair is equal, or which two objects they are; the search says which, in eight dimensions of
32. The task is that of arXiv 2303.02536, section 4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    CausalModel,
    InterchangeDataset,
    Site,
    interchange_accuracy,
    sample_pairs,
)

from .trial import Fit, found, share_right

__all__ = ["EQUAL", "SITES", "WRONG", "Reader", "exchanged", "right", "searched", "trained"]

OBJECTS = 8
_INPUTS = dict.fromkeys("ABCD", range(OBJECTS))
EQUAL = CausalModel(
    {"E1": lambda A, B: A == B, "E2": lambda C, D: C == D, "V": lambda E1, E2: E1 == E2}, inputs=_INPUTS
)
WRONG = CausalModel(
    {"E1": lambda A, C: A == C, "E2": lambda B, D: B == D, "V": lambda E1, E2: E1 == E2}, inputs=_INPUTS
)
"""Equality of other pairs: what this network does not look at."""
SITES = {"E1": Site(module="blocks.0", position=1), "E2": Site(module="blocks.0", position=3)}
_PAIR = torch.tensor([0, 0, 1, 1, 2])
_END = torch.tensor([False, True, False, True, True])


class Reader(nn.Module):
    """Two blocks over `a b c d ?`; a score for unequal and for equal at the last token.

    In the first block a token sees its own pair up to itself, in the second the ends of the pairs up to itself.
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(OBJECTS + 1, hidden)
        self.places = nn.Embedding(len(_PAIR), hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, 4, 4 * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(hidden)
        self.scores = nn.Linear(hidden, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores `[batch, 2]` of `[batch, 5]`."""
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        apart = _PAIR[:, None] != _PAIR[None, :]
        inner = ~_END[None, :] & ~torch.eye(5, dtype=torch.bool)
        hidden = self.tokens(ids) + self.places.weight
        for block, hides in zip(self.blocks, (later | apart, later | inner), strict=True):
            hidden = block(hidden, src_mask=hides)
        found: Tensor = self.scores(self.norm(hidden[:, -1]))
        return found


def encode(rows: Sequence[Any]) -> Tensor:
    """Inputs of the causal models → `[batch, 5]`, the question last."""
    return torch.tensor([[*(row[name] for name in "ABCD"), OBJECTS] for row in rows])


def decode(scores: Tensor) -> Tensor:
    """Whether equal has the higher score."""
    return scores[:, 1] > scores[:, 0]


def trained(seed: int, steps: int = 1500) -> Reader:
    """A network trained until it answers all 4096 inputs, from a seed; with no steps an untrained one.

    Half of the pairs that it sees are equal. It is trained on for as long again, at a rate that falls to zero. A start
    that does not come to answer all is given up for another one, at most twice.
    """
    for start in (seed, seed + 1000, seed + 2000):
        network = _trained_once(start, steps)
        if not steps or _all_right(network):
            break
    return network


def _trained_once(seed: int, steps: int) -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Reader()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    end = steps
    for step in range(steps):
        if step >= end:
            break
        drawn = _balanced(torch.randint(OBJECTS, (128, 4), generator=generator), generator)
        optimiser.zero_grad()
        cross_entropy(network(_asked(drawn)), _equal(drawn)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if end == steps and step % 50 == 49 and _all_right(network):
            end = min(steps, step + 1 + _SETTLE)
        if end < steps:
            optimiser.param_groups[0]["lr"] = 3e-3 * max(end - step - 1, 1) / _SETTLE
    return network.eval()


def right(network: Reader) -> float:
    """The share of all inputs that it answers rightly."""
    return share_right(network, EQUAL, encode=encode, decode=decode)


def searched(
    network: Reader, seed: int, causal_model: CausalModel = EQUAL, *, dimension: int = 8, restarts: int = 2
) -> tuple[AlignmentSearch, Accuracy]:
    """Both equalities sought, each at the second token of its pair; the accuracy is on pairs of draws of their own."""
    search = found(
        network,
        causal_model,
        SITES,
        dict.fromkeys(SITES, dimension),
        drawn,
        seed=seed,
        classes=(False, True),
        fit=Fit(steps=250, learning_rate=0.02, batch_size=64, restarts=restarts),
        encode=encode,
        decode=decode,
    )
    return search, search.accuracy(drawn(causal_model, seed + 2_000_000, 1000), decode=decode)


def exchanged(network: Reader, seed: int) -> Accuracy:
    """The whole vectors exchanged at the same tokens."""
    pairs = drawn(EQUAL, seed + 2_000_000, 1000)
    return interchange_accuracy(network, EQUAL, SITES, pairs, encode=encode, decode=decode)


def drawn(causal_model: CausalModel, seed: int, count: int) -> InterchangeDataset:
    """Interchanges of one equality or both; half of them change the answer, half of the pairs are equal."""
    (first, second), (third, fourth) = (causal_model.parents[name] for name in SITES)

    def inputs(generator: random.Random) -> dict[str, int]:
        values = {name: generator.randrange(OBJECTS) for name in "ABCD"}
        for one, other in ((first, second), (third, fourth)):
            if generator.random() < 0.5:
                values[other] = values[one]
        return values

    pairs = sample_pairs(causal_model, list(SITES), count, seed=seed, changing=0.5, inputs=inputs)
    return InterchangeDataset.from_pairs(causal_model, pairs)


def _balanced(values: Tensor, generator: torch.Generator) -> Tensor:
    same = torch.rand(len(values), 2, generator=generator) < 0.5
    values[:, 1::2] = torch.where(same, values[:, 0::2], values[:, 1::2])
    return values


def _asked(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_full((len(values), 1), OBJECTS)], 1)


def _equal(values: Tensor) -> Tensor:
    return ((values[:, 0] == values[:, 1]) == (values[:, 2] == values[:, 3])).long()


def _all_right(network: Reader) -> bool:
    every = torch.cartesian_prod(*[torch.arange(OBJECTS)] * 4)
    with torch.no_grad():
        return bool((network(_asked(every)).argmax(-1) == _equal(every)).all())


_SETTLE = 150
"""Steps after the first time that all inputs are answered rightly."""
