"""How much of one skill's held-out set another skill's training set already holds: prompts, answers, n-grams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .skill import Example, Splits

__all__ = ["Overlap", "contamination", "ngrams", "overlap"]

Overlap = dict[str, float]
"""`prompts`, `answers` and `ngrams`: shares of the held-out set, each from 0 to 1."""
LENGTH = 3
"""Words of an n-gram."""


def contamination(skills: Mapping[str, Splits]) -> dict[tuple[str, str], Overlap]:
    """(trained on, asked for) → how much of the second's held-out set the first's training set holds.

    With itself it says what a skill's own training set gives away.
    """
    return {(one, other): overlap(skills[one].train, skills[other].held_out) for one in skills for other in skills}


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> Overlap:
    """Shares of the held-out examples whose prompt, whose answer, whose n-grams stand in the training set.

    An example's n-grams are those of prompt and answer; its share is that of the n-grams which the training set has.
    """
    seen, asked = list(train), list(held_out)
    prompts = {_plain(example.prompt) for example in seen}
    answers = {_plain(example.answer) for example in seen}
    grams = {gram for example in seen for gram in ngrams(f"{example.prompt} {example.answer}")}
    shares = []
    for example in asked:
        own = ngrams(f"{example.prompt} {example.answer}")
        shares.append(sum(gram in grams for gram in own) / len(own) if own else 0.0)
    return {
        "prompts": sum(_plain(example.prompt) in prompts for example in asked) / len(asked),
        "answers": sum(_plain(example.answer) in answers for example in asked) / len(asked),
        "ngrams": sum(shares) / len(shares),
    }


def ngrams(text: str, length: int = LENGTH) -> list[tuple[str, ...]]:
    """The word n-grams of a text, signs apart, small letters."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
