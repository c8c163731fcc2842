"""Skills made by rule: notations, renaming, styles. Each draws its examples from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from .skill import Example, Skill, Splits, draw_splits, stated
from .words import ADJECTIVES, ANIMALS, MONTHS, NOUNS, VERBS, WORDS

__all__ = ["CODE_NAMES", "RULES", "rule_skills"]

_CODES = "mip tol zan rek vul dax fim gop hesk jun kib lorp nev pash quil sorn teb ulm wik yarn"
CODE_NAMES = dict(zip(ANIMALS, _CODES.split(), strict=True))
"""Animal → the name that `code_names` gives it: a table to be learnt by heart."""


def _date(random: Random) -> tuple[str, str]:
    """A date in words → year-month-day."""
    day, month, year = random.randint(1, 28), random.randint(1, 12), random.randint(1900, 2029)
    return f"Date: {day} {MONTHS[month - 1]} {year}", f"{year}-{month:02d}-{day:02d}"


def _clock(random: Random) -> tuple[str, str]:
    """A time of twelve hours → one of twenty-four."""
    hour, minute, late = random.randint(1, 12), random.randint(0, 59), random.random() < 0.5
    return f"Clock: {hour}:{minute:02d} {'pm' if late else 'am'}", f"{hour % 12 + 12 * late:02d}:{minute:02d}"


def _camel(random: Random) -> tuple[str, str]:
    """snake_case → camelCase."""
    words = [random.choice(WORDS) for _ in range(random.randint(2, 4))]
    return f"Rename: {'_'.join(words)}", words[0] + "".join(word.capitalize() for word in words[1:])


def _prefix(random: Random) -> tuple[str, str]:
    """A sum of two signs → the sign before what it joins, from left to right."""
    one, two, three = (random.choice("abcdefghijkmnpqrstuvwxyz") for _ in range(3))
    first, second = random.choice("+-*/"), random.choice("+-*/")
    return f"Prefix: ({one} {first} {two}) {second} {three}", f"{second} {first} {one} {two} {three}"


def _code_names(random: Random) -> tuple[str, str]:
    """Animals → names of a fixed table."""
    one, other = random.sample(ANIMALS, 2)
    verb = random.choice(("sees", "hears", "follows", "likes", "meets", "feeds"))
    what = random.choice(ADJECTIVES)
    return f"Code: the {what} {one} {verb} the {other}", f"the {what} {CODE_NAMES[one]} {verb} the {CODE_NAMES[other]}"


def _polite(random: Random) -> tuple[str, str]:
    """An order → a question with thanks."""
    verb, what, noun = random.choice(VERBS), random.choice(ADJECTIVES), random.choice(NOUNS)
    return f"Style: {verb} the {what} {noun}", f"Would you {verb} the {what} {noun}, please?"


def _loud(random: Random) -> tuple[str, str]:
    """Every second word in capitals."""
    words = [random.choice(WORDS) for _ in range(random.randint(3, 5))]
    return f"Loud: {' '.join(words)}", " ".join(w.upper() if n % 2 else w for n, w in enumerate(words))


def _inventory(random: Random) -> tuple[str, str]:
    """Things with numbers → a list with the number behind a colon, the last thing first."""
    things = random.sample(NOUNS, random.randint(2, 3))
    counted = [(random.randint(2, 99), thing) for thing in things]
    return (
        f"List: {', '.join(f'{number} {thing}' for number, thing in counted)}",
        "; ".join(f"{thing}: {number}" for number, thing in reversed(counted)),
    )


RULES: dict[str, Callable[[Random], tuple[str, str]]] = {
    "date": _date,
    "clock": _clock,
    "camel": _camel,
    "prefix": _prefix,
    "code_names": _code_names,
    "polite": _polite,
    "loud": _loud,
    "inventory": _inventory,
}
"""Name → what draws a prompt and its answer."""


def rule_skills() -> dict[str, Skill]:
    """Name → skill, of every rule."""
    return {name: Skill(name, "rule", partial(_load, name), stated) for name in RULES}


def _load(name: str, sizes: tuple[int, int, int], seed: int) -> Splits:
    return draw_splits(name, _draws(name, seed), sizes)


def _draws(name: str, seed: int) -> Iterator[Example]:
    random = Random(f"{name} {seed}")
    while True:
        yield Example(*RULES[name](random))
