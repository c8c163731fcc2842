"""`Task`: prompts with a causal model behind them, and counterfactuals that tell its variables apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_reft.causal.model import CausalModel, Values
from peft_reft.causal.pairs import Pair
from peft_reft.hub_format.errors import CausalModelError

__all__ = ["Counterfactual", "Draw", "Task"]

Draw = Callable[[random.Random], Values]
"""A generator → inputs of the causal model."""
Counterfactual = Callable[[random.Random, Values], Values]
"""(generator, base) → the inputs of its source."""


@dataclass(frozen=True)
class Task:
    """What a language model is asked, and what it is thought to compute (after MIB, arXiv 2504.13151).

    All of it are pure functions: an input of the causal model has one prompt, and what is drawn follows a seed.

    Attributes:
        name: short.
        causal_model: its output is the answer.
        variables: those of it that are sought, each with a sentence.
        prompt: inputs → the text that is answered.
        answers: value of the output → the text of its one token, with the space before it if there is one.
        places: name of a token → (inputs, prompt) → the character of the prompt that it ends at.
        draw: draws inputs.
        counterfactuals: name → what a source has in common with its base.
    """

    name: str
    causal_model: CausalModel
    variables: Mapping[str, str]
    prompt: Callable[[Values], str]
    answers: Mapping[Any, str]
    places: Mapping[str, Callable[[Values, str], int]]
    draw: Draw
    counterfactuals: Mapping[str, Counterfactual]

    def inputs(self, count: int, *, seed: int) -> list[Values]:
        """Inputs, drawn.

        Args:
            count: how many.
            seed: of a generator of their own.

        Returns:
            Inputs of the causal model; one may come twice.
        """
        generator = random.Random(seed)
        return [self.draw(generator) for _ in range(count)]

    def pairs(self, variable: str, bases: Sequence[Values], *, counterfactual: str, seed: int) -> list[Pair]:
        """One pair for each base, in which one variable is taken from a source.

        Args:
            variable: of the causal model.
            bases: inputs.
            counterfactual: of `counterfactuals`.
            seed: of a generator of its own.

        Returns:
            The pairs, in the order of the bases.

        Raises:
            CausalModelError: a variable or a counterfactual that the task does not have.
        """
        for what, name, known in (
            ("variable", variable, self.variables),
            ("counterfactual", counterfactual, self.counterfactuals),
        ):
            if name not in known:
                raise CausalModelError(
                    f"{what}={name!r} of the task {self.name!r}",
                    code="causal.task",
                    value=name,
                    rule=f"it is one of {', '.join(known)}",
                )
        generator, make = random.Random(seed), self.counterfactuals[counterfactual]
        return [Pair(base, {variable: make(generator, base)}) for base in bases]
