"""What a skill is: examples with one right answer each, in three sets that share no prompt, and an exact metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

__all__ = ["Example", "Skill", "SkillError", "Splits", "draw_splits", "share_splits", "stated"]

ENOUGH_DRAWS = 200
"""Draws without a new prompt after which a generator is told to have no more."""


class SkillError(ValueError):
    """A skill that is unknown, or has not as many examples as were asked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the one answer that counts as right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Splits:
    """Three sets without a common prompt.

    Attributes:
        train: what is learnt from.
        validation: what settings are chosen by.
        held_out: what figures are made of.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True)
class Skill:
    """A skill by name.

    Attributes:
        name: of the skill.
        source: `"rule"`, `"reasoning-gym"` or `"bigbench"`.
        load: (examples in train, validation, held-out) and a seed → the sets; the same for the same arguments.
        score: an answer that a model gave and the example → from 0 to 1; 1 for the right answer.
    """

    name: str
    source: Literal["rule", "reasoning-gym", "bigbench"]
    load: Callable[[tuple[int, int, int], int], Splits]
    score: Callable[[str, Example], float]

    def splits(self, sizes: tuple[int, int, int] = (512, 64, 128), *, seed: int = 0) -> Splits:
        """The sets, of these sizes.

        Raises:
            SkillError: the skill has not as many examples.
        """
        if len(sizes) != 3 or min(sizes) < 1:
            raise SkillError(f"sizes={sizes!r}: three numbers, 1 or more: train, validation, held-out")
        return self.load(sizes, seed)


def stated(answer: str, example: Example) -> float:
    """1 where the answer is the example's, blanks at its ends aside, else 0."""
    return float(answer.strip() == example.answer.strip())


def draw_splits(name: str, draws: Iterator[Example], sizes: tuple[int, int, int]) -> Splits:
    """Sets of what a generator draws, each prompt once.

    Raises:
        SkillError: it repeats itself before there are as many.
    """
    seen: dict[str, Example] = {}
    vain = 0
    while len(seen) < sum(sizes):
        example = next(draws, None)
        if example is None or vain > ENOUGH_DRAWS:
            raise SkillError(f"{name!r} has no {sum(sizes)} different examples: {len(seen)} were drawn")
        vain = vain + 1 if example.prompt in seen else 0
        seen.setdefault(example.prompt, example)
    return _cut(tuple(seen.values()), sizes)


def share_splits(name: str, examples: Iterable[Example], sizes: tuple[int, int, int], seed: int) -> Splits:
    """Sets of a fixed list, in an order that the seed gives; of equal prompts the first counts.

    Raises:
        SkillError: the list is too short.
    """
    known: dict[str, Example] = {}
    for example in examples:
        known.setdefault(example.prompt, example)
    if len(known) < sum(sizes):
        raise SkillError(f"{name!r} has {len(known)} examples; {sum(sizes)} were asked for: ask for fewer")
    shuffled = list(known.values())
    Random(seed).shuffle(shuffled)
    return _cut(tuple(shuffled), sizes)


def _cut(examples: tuple[Example, ...], sizes: tuple[int, int, int]) -> Splits:
    train, validation, held_out = sizes
    return Splits(examples[:train], examples[train : train + validation], examples[train + validation :][:held_out])
