"""The plain loop of an alignment search: Adam, a rate that falls linearly, further starts where one finds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from peft_reft.hub_format.errors import CausalModelError
from peft_reft.screen import progress

from .accuracy import Accuracy, Decode
from .dataset import InterchangeCollator, InterchangeDataset

__all__ = ["Fitted", "fit"]


class Fitted(Protocol):
    """What the loop asks of a search: a module that gives the loss of a batch, and can start anew."""

    @property
    def collator(self) -> InterchangeCollator:
        """Items → the keywords of a call."""

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """`{"loss": scalar}`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that are learned."""

    def state_dict(self) -> dict[str, Any]:
        """Of the start that was fitted."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Back to a start that was fitted."""

    def reset(self, seed: int) -> None:
        """Start anew."""

    def anneal(self, done: float, temperatures: tuple[float, float] | None = None) -> None:
        """Go on to the share of the steps that is done."""

    def accuracy(self, pairs: InterchangeDataset, *, decode: Decode) -> Accuracy:
        """Of the alignment found."""


def fit(
    search: Fitted,
    data: InterchangeDataset,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    temperatures: tuple[float, float] | None,
    validation: InterchangeDataset | None,
    decode: Decode | None,
    restarts: int,
    enough: float,
) -> list[float]:
    """See `AlignmentSearch.fit`."""
    if steps < 1 or batch_size < 1 or restarts < 0:
        raise CausalModelError(
            f"{steps} steps of {batch_size}, {restarts} restarts",
            code="causal.fit",
            value=(steps, batch_size, restarts),
            rule="one or more steps and pairs a step; no restarts or some",
        )
    if (validation is None) != (decode is None) or (restarts and validation is None):
        raise CausalModelError(
            f"restarts={restarts} with validation {'left out' if validation is None else 'given'}, decode "
            f"{'left out' if decode is None else 'given'}",
            code="causal.fit",
            value=restarts,
            rule="validation and decode go together, and decide between starts",
        )
    best: tuple[float, list[float], dict[str, Any]] = (float("-inf"), [], {})
    for start in range(restarts + 1):
        if start:
            search.reset(seed + start * _APART)
        losses = _descend(search, data, steps, learning_rate, batch_size, seed, temperatures)
        if validation is None or decode is None:
            return losses
        reached = _reached(search, validation, decode)
        if reached > best[0]:
            best = reached, losses, {name: value.clone() for name, value in search.state_dict().items()}
        if reached >= enough:
            break
    search.load_state_dict(best[2])
    return best[1]


def _descend(
    search: Fitted,
    data: InterchangeDataset,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    temperatures: tuple[float, float] | None,
) -> list[float]:
    optimiser = torch.optim.Adam(search.parameters(), lr=learning_rate)
    batches = _batches(data, batch_size, seed)
    losses = []
    for step in progress(range(steps), "fit", unit="step", keep=False):
        search.anneal(step / max(steps - 1, 1), temperatures)
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimiser.zero_grad()
        loss = search(**search.collator(next(batches)))["loss"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    optimiser.zero_grad()
    return losses


def _reached(search: Fitted, validation: InterchangeDataset, decode: Decode) -> float:
    try:
        return search.accuracy(validation, decode=decode).value
    except CausalModelError as error:
        if error.code == "causal.boundary":  # this start left a variable no coordinate
            return -1.0
        raise


def _batches(data: InterchangeDataset, size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Epochs without end, each in an order of its own: that of a seedable sampler, which `Trainer` uses."""
    generator = torch.Generator()
    epoch = 0
    while True:
        order = torch.randperm(len(data), generator=generator.manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order), size):
            yield [data[index] for index in order[start : start + size]]
        epoch += 1


_APART = 7919
"""Between the seeds of two starts, so that neighbouring seeds of a user share none."""
