"""What an objective is: the forwards of a step, and what the two answers of a pair cost in each."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, shown

__all__ = ["Answers", "Objective", "Pass", "check_pairs", "checked_factors", "checked_weight"]

Draw = Callable[[], float]
"""Gives one of the objective's factors; each call draws anew."""


@dataclass(frozen=True)
class Answers:
    """How likely one answer of each pair is.

    Attributes:
        total: log p(answer | prompt) `[pairs]`, in nats, summed over the answer's tokens.
        tokens: their number `[pairs]`, 1 or more.
    """

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """The same per token."""
        return self.total / self.tokens


@dataclass(frozen=True)
class Pass:
    """One forward of both answers of every pair.

    Attributes:
        factor: of the edit; None: as it stands.
        nulled: the edit takes its direction out of h instead of adding it.
        swapped: the rejected answer is the wanted one.
    """

    factor: float | None = None
    nulled: bool = False
    swapped: bool = False


class Objective(ABC):
    """A loss of pairs of answers to one prompt."""

    needs_base: ClassVar[bool] = False
    """Whether it asks how likely the answers are without the edit."""

    @property
    @abstractmethod
    def drawn_from(self) -> tuple[float, ...]:
        """Factors of which its passes take some; none where it leaves the edit's factor alone."""

    @abstractmethod
    def passes(self, draw: Draw) -> list[Pass]:
        """The forwards of a step."""

    @abstractmethod
    def loss(self, wanted: Answers, unwanted: Answers, before: tuple[Answers, Answers] | None) -> Tensor:
        """What each pair adds to the loss of a step in one pass, `[pairs]`.

        Args:
            wanted: the answer that this pass should make likelier.
            unwanted: the other one.
            before: the same two without the edit, without gradients; None where `needs_base` is False.
        """


def checked_factors(factors: Any) -> tuple[float, ...]:
    """Factors from which one is drawn.

    Raises:
        ConfigError: none, or one that is not a finite number above 0.
    """
    found = tuple(factors) if isinstance(factors, (list, tuple)) else ()
    if not found or any(not _is_number(factor) or factor <= 0 for factor in found):
        raise ConfigError(
            f"factors={shown(factors)}",
            value=factors,
            rule="a list of finite numbers above 0, of which one is drawn for each step",
            fix="give the factors at which the adapter will be used, e.g. factors=(0.5, 1.0, 1.5)",
        )
    return tuple(map(float, found))


def checked_weight(name: str, value: Any, *, least: float = 0.0) -> None:
    """Check a weight of a loss.

    Raises:
        ConfigError: no finite number, or one below the least.
    """
    if not _is_number(value) or value < least:
        raise ConfigError(f"{name}={shown(value)}", value=value, rule=f"a finite number, {least:g} or more")


def check_pairs(**given: Any) -> None:
    """Check what a loss is computed of: tensors of one shape; another one would be spread over all pairs in silence.

    Raises:
        ConfigError: something is no tensor of floating-point or whole numbers, or has another shape than the first.
    """
    first, like = next(iter(given.items()))
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.is_complex() or value.dtype is torch.bool:
            raise ConfigError(f"{name} is {shown(value)}", value=value, rule="a tensor of numbers, one for each pair")
        if value.shape != like.shape:
            raise ConfigError(
                f"{name} has shape {list(value.shape)}, {first} {list(like.shape)}",
                value=list(value.shape),
                rule="both answers of every pair have one number each",
            )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
