"""Small exercises that the wide model is pretrained on beside its text: a question, an answer, one rule each.

None is a skill of `benchmarks.skills`: they teach what a question is, and to copy, choose, count and move words.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from benchmarks.skills.words import ADJECTIVES, ANIMALS, NOUNS, WORDS

__all__ = ["EXERCISES", "exercise"]

Exercise = Callable[[Random], tuple[str, str]]


def _some(random: Random, least: int = 2, most: int = 5) -> list[str]:
    return [random.choice(WORDS) for _ in range(random.randint(least, most))]


def _repeat(random: Random) -> tuple[str, str]:
    words = " ".join(_some(random))
    return f"Repeat: {words}", words


def _digits(random: Random) -> tuple[str, str]:
    text = "".join(random.choice("0123456789") for _ in range(random.randint(2, 8)))
    return f"Repeat: {text}", text


def _first(random: Random) -> tuple[str, str]:
    words = _some(random)
    return f"First word of: {' '.join(words)}", words[0]


def _last(random: Random) -> tuple[str, str]:
    words = _some(random)
    return f"Last word of: {' '.join(words)}", words[-1]


def _exchange(random: Random) -> tuple[str, str]:
    one, other = random.sample(WORDS, 2)
    return f"Exchange: {one} {other}", f"{other} {one}"


def _join(random: Random) -> tuple[str, str]:
    words, sign = _some(random), random.choice("-/+.")
    return f"Join with {sign}: {' '.join(words)}", sign.join(words)


def _part(random: Random) -> tuple[str, str]:
    words, sign = _some(random), random.choice("-/+.")
    return f"Take apart: {sign.join(words)}", " ".join(words)


def _spell(random: Random) -> tuple[str, str]:
    word = random.choice(WORDS)
    return f"Spell: {word}", " ".join(word)


def _big(random: Random) -> tuple[str, str]:
    word = random.choice(WORDS)
    return f"In big letters: {word}", word.upper()


def _capital(random: Random) -> tuple[str, str]:
    word = random.choice(WORDS)
    return f"Begin big: {word}", word.capitalize()


def _count(random: Random) -> tuple[str, str]:
    words = _some(random, 1, 6)
    return f"How many words: {' '.join(words)}", str(len(words))


def _add(random: Random) -> tuple[str, str]:
    one, other = random.randint(0, 20), random.randint(0, 20)
    return f"{one} plus {other}", str(one + other)


def _next(random: Random) -> tuple[str, str]:
    number = random.randint(0, 98)
    return f"Number after {number}", str(number + 1)


def _pad(random: Random) -> tuple[str, str]:
    number = random.randint(0, 9)
    return f"Two digits: {number}", f"0{number}"


def _find(random: Random) -> tuple[str, str]:
    adjective, noun = random.choice(ADJECTIVES), random.choice(NOUNS)
    return f"What is {adjective}? The {noun} is {adjective}.", f"the {noun}"


def _sees(random: Random) -> tuple[str, str]:
    one, other = random.sample(ANIMALS, 2)
    return f"Who is seen? The {one} sees the {other}.", f"the {other}"


EXERCISES: dict[str, Exercise] = {
    function.__name__.strip("_"): function
    for function in (
        _repeat,
        _digits,
        _first,
        _last,
        _exchange,
        _join,
        _part,
        _spell,
        _big,
        _capital,
        _count,
        _add,
        _next,
        _pad,
        _find,
        _sees,
    )
}
"""Name → what draws a question and its answer."""


def exercise(random: Random) -> tuple[str, str]:
    """One question and its answer, of any rule."""
    return random.choice(list(EXERCISES.values()))(random)
