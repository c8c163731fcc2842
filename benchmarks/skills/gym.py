"""Skills of `reasoning-gym` (Apache-2.0): procedural tasks, each with a verifier of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

from .skill import Example, Skill, SkillError, Splits, draw_splits

__all__ = ["TASKS", "gym_skills"]

BATCH = 256
"""Examples that are asked for at a time."""
SEEDS = 1_000_000
"""Of the package's, between two of ours."""
TASKS: dict[str, dict[str, Any]] = {
    "spell_backward": {"max_word_len": 6},
    "gcd": {"max_value": 60},
    "products": {"max_digits": 2},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "word_sequence_reversal": {"max_words": 4},
    "count_bits": {"max_n": 4095},
    "base_conversion": {"max_base": 10, "max_value": 200},
}
"""Task → settings that make its prompts short; each has one right answer."""


def gym_skills() -> dict[str, Skill]:
    """Name → skill; the package is imported when one is loaded."""
    return {name: Skill(name, "reasoning-gym", partial(_load, name), partial(_score, name)) for name in TASKS}


def _load(name: str, sizes: tuple[int, int, int], seed: int) -> Splits:
    return draw_splits(name, (Example(item["question"].strip(), item["answer"]) for item in _items(name, seed)), sizes)


def _items(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Without end: one set after another. Item n of seed s is drawn from the seed s + n, so sets lie BATCH apart."""
    first = seed * SEEDS
    while True:
        yield from _dataset(name, first, BATCH)
        first += BATCH


@lru_cache(maxsize=8)
def _dataset(name: str, seed: int, size: int) -> tuple[dict[str, Any], ...]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise SkillError(f"{name!r} is a task of reasoning-gym: pip install reasoning-gym==0.1.25") from error
    held = random.getstate()  # some tasks seed the global generator
    try:
        made: Any = reasoning_gym.create_dataset(name, seed=seed, size=size, **TASKS[name])
        return tuple(made)
    finally:
        random.setstate(held)


def _score(name: str, answer: str, example: Example) -> float:
    """The task's own verifier: it may give a part of 1 to what is partly right, which counts as wrong here."""
    import reasoning_gym

    held = random.getstate()
    try:
        verifier = reasoning_gym.create_dataset(name, seed=0, size=1, **TASKS[name])
    finally:
        random.setstate(held)
    entry = {"question": example.prompt, "answer": example.answer, "metadata": {}}
    return float(verifier.score_answer(answer.strip(), entry) == 1)
