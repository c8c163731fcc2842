"""Requests of log-likelihoods as the forwards that answer them: tokens, and how many of them are the context.

The harness lets requests share a forward whose tokens are equal. With a ReFT the edited tokens depend on where the
context ends, so here they share it only where that is the same too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError

__all__ = ["Request", "Scoring", "padded", "scorings"]

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts (None in a rolling window), ids of the context, ids of the continuation."""


@dataclass
class Scoring:
    """One row of a forward.

    Attributes:
        tokens: context and continuation, without its last token, cut from the left where they are too long.
        context: how many of them are the context.
        requests: numbers of the requests that it answers.
    """

    tokens: list[int]
    context: int
    requests: list[int] = field(default_factory=list)

    @property
    def scored(self) -> slice:
        """The places whose logits predict the continuation."""
        return slice(self.context - 1, len(self.tokens))


def scorings(requests: Sequence[Request], *, max_length: int, share: bool) -> list[Scoring]:
    """The rows that answer some requests, the longest first.

    Args:
        requests: context and continuation of each.
        max_length: how many tokens the model takes.
        share: whether one row answers all requests that differ in the last token only.

    Raises:
        LocationError: an empty context or continuation, or a continuation longer than the model.
    """
    rows: dict[tuple[int, tuple[int, ...], int], Scoring] = {}
    for number, (_, context, continuation) in enumerate(requests):
        if not context or not continuation or len(continuation) > max_length:
            raise LocationError(
                f"request {number} has {len(context)} tokens of context and {len(continuation)} of continuation",
                value=(len(context), len(continuation)),
                rule=f"both have at least one, and the continuation at most the {max_length} that the model takes",
                fix="look at the task's doc_to_text and doc_to_choice, or give a larger max_length",
            )
        tokens = [*context, *continuation][-(max_length + 1) :][:-1]
        kept = len(tokens) + 1 - len(continuation)
        key = (kept, tuple(tokens), -1 if share else number)
        rows.setdefault(key, Scoring(tokens, kept)).requests.append(number)
    return sorted(rows.values(), key=lambda row: (-len(row.tokens), row.tokens, row.context))


def padded(rows: Sequence[Scoring], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids `[batch, seq]`, padded with 0 on the right as the harness does it, and context lengths `[batch]`."""
    ids = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
    return ids.to(device), torch.tensor([row.context for row in rows], device=device)
