"""What both small networks are tried with: how much they get right, and a search on pairs drawn apart for each use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from peft_reft.causal import (
    AlignmentSearch,
    CausalModel,
    InterchangeDataset,
    Site,
    answered,
    class_loss,
)

__all__ = ["Fit", "found", "share_right"]


@dataclass(frozen=True)
class Fit:
    """How a search is fitted; `restarts` further starts may be tried."""

    steps: int
    learning_rate: float
    batch_size: int
    restarts: int


def share_right(
    network: nn.Module, causal_model: CausalModel, *, encode: Callable[..., Any], decode: Callable[[Any], Any]
) -> float:
    """The share of all inputs on which the network gives what the causal model does."""
    inputs = list(causal_model.every_input())
    return sum(answered(network, causal_model, inputs, encode=encode, decode=decode)) / len(inputs)


def found(
    network: nn.Module,
    causal_model: CausalModel,
    site: Site | Mapping[str, Site],
    dimensions: Mapping[str, int],
    drawn: Callable[[CausalModel, int, int], InterchangeDataset],
    *,
    seed: int,
    classes: Sequence[Any],
    fit: Fit,
    encode: Callable[..., Any],
    decode: Callable[[Any], Any],
) -> AlignmentSearch:
    """The variables sought from a seed: fitted on 3000 pairs, the start chosen on 500 of another draw.

    Args:
        network: gives scores, one for each class.
        causal_model: what it is thought to compute.
        site: where, for all variables or for each.
        dimensions: of each variable.
        drawn: (causal model, seed, count) → pairs.
        seed: of the start, the pairs and their order.
        classes: values of the causal model's output, in the order of the scores.
        fit: how.
        encode: inputs of the causal model → a batch.
        decode: scores → values of the output.
    """
    loss = class_loss(classes, logits=lambda scores: scores)
    search = AlignmentSearch(network, causal_model, site, dimensions, encode=encode, loss=loss, seed=seed)
    search.fit(
        drawn(causal_model, seed, 3000),
        steps=fit.steps,
        learning_rate=fit.learning_rate,
        batch_size=fit.batch_size,
        seed=seed,
        validation=drawn(causal_model, seed + 1_000_000, 500),
        decode=decode,
        restarts=fit.restarts,
    )
    return search
