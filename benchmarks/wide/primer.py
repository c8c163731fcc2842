"""Small exercises that the wide model is pretrained on beside its text: a question, an answer, one rule each.

None is a skill of `benchmarks.skills`: they teach what a question is, to copy, choose, count and move words, and small
rules of format that the question states.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from benchmarks.skills.words import ADJECTIVES, ANIMALS, MONTHS, NOUNS, VERBS, WORDS

__all__ = ["EXERCISES", "exercise"]

Exercise = Callable[[Random], tuple[str, str]]
SEPARATORS = "-/+._:;,"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


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
    words, sign = _some(random), random.choice(SEPARATORS)
    return f"Join with {sign}: {' '.join(words)}", sign.join(words)


def _part(random: Random) -> tuple[str, str]:
    words, sign = _some(random), random.choice(SEPARATORS)
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
    number = random.randint(0, 28)
    return f"Two digits: {number}", f"{number:02d}"


def _find(random: Random) -> tuple[str, str]:
    adjective, noun = random.choice(ADJECTIVES), random.choice(NOUNS)
    return f"What is {adjective}? The {noun} is {adjective}.", f"the {noun}"


def _sees(random: Random) -> tuple[str, str]:
    one, other = random.sample(ANIMALS, 2)
    return f"Who is seen? The {one} sees the {other}.", f"the {other}"


def _wrap(random: Random) -> tuple[str, str]:
    before, after = random.sample(WORDS, 2)
    words = " ".join(_some(random, 1, 4))
    return f"Put {before} before and {after} after: {words}", f"{before} {words} {after}"


def _bracket(random: Random) -> tuple[str, str]:
    words, pair = " ".join(_some(random, 1, 4)), random.choice(("()", "[]", "<>", "{}", '""', "?!"))
    return f"Between {pair}: {words}", f"{pair[0]}{words}{pair[1]}"


def _end(random: Random) -> tuple[str, str]:
    words, sign = " ".join(_some(random, 1, 4)), random.choice("?!.,;:")
    return f"End with {sign} {words}", f"{words}{sign}"


def _plea(random: Random) -> tuple[str, str]:
    verb, noun = random.choice(VERBS), random.choice(NOUNS)
    return f"Beg: {verb} it, {noun}", f"Please, {noun}, {verb} it!"


def _backwards(random: Random) -> tuple[str, str]:
    words = _some(random, 2, 4)
    return f"Backwards: {' '.join(words)}", " ".join(reversed(words))


def _order(random: Random) -> tuple[str, str]:
    letters = [random.choice(LETTERS) for _ in range(3)]
    order = random.sample(range(3), 3)
    return f"Order {''.join(str(n + 1) for n in order)}: {' '.join(letters)}", " ".join(letters[n] for n in order)


def _sum(random: Random) -> tuple[list[str], list[str], str]:
    letters, signs = [random.choice(LETTERS) for _ in range(3)], [random.choice("+-*/") for _ in range(2)]
    return letters, signs, f"({letters[0]} {signs[0]} {letters[1]}) {signs[1]} {letters[2]}"


def _signs(random: Random) -> tuple[str, str]:
    _, signs, text = _sum(random)
    return f"Signs: {text}", " ".join(signs)


def _letters(random: Random) -> tuple[str, str]:
    letters, _, text = _sum(random)
    return f"Letters: {text}", " ".join(letters)


def _last_sign(random: Random) -> tuple[str, str]:
    _, signs, text = _sum(random)
    return f"Last sign: {text}", signs[1]


def _open(random: Random) -> tuple[str, str]:
    letters, signs, text = _sum(random)
    return f"Without brackets: {text}", f"{letters[0]} {signs[0]} {letters[1]} {signs[1]} {letters[2]}"


def _capitals(random: Random) -> tuple[str, str]:
    words, sign = _some(random, 2, 4), random.choice(SEPARATORS)
    return f"Begin each big: {sign.join(words)}", sign.join(word.capitalize() for word in words)


def _glue(random: Random) -> tuple[str, str]:
    words = _some(random, 2, 4)
    return f"Glue: {' '.join(words)}", "".join(words)


def _month(random: Random) -> tuple[str, str]:
    number = random.randint(1, 12)
    return f"Number of month: {MONTHS[number - 1]}", str(number)


def _month_name(random: Random) -> tuple[str, str]:
    number = random.randint(1, 12)
    return f"Name of month: {number}", MONTHS[number - 1]


def _part_of_day(random: Random) -> tuple[str, str]:
    half = random.choice(("am", "pm"))
    return f"Half of day: {_time(random)} {half}", {"am": "morning", "pm": "evening"}[half]


def _time(random: Random) -> str:
    return f"{random.randint(1, 12)}:{random.randint(0, 59):02d}"


def _minutes(random: Random) -> tuple[str, str]:
    time = _time(random)
    return f"Minutes: {time}", time.split(":")[1]


def _hour(random: Random) -> tuple[str, str]:
    time = _time(random)
    return f"Hour: {time}", time.split(":")[0]


def _twelve(random: Random) -> tuple[str, str]:
    number = random.randint(1, 12)
    return f"12 more than {number}", str(number + 12)


def _day(random: Random) -> tuple[list[str], str]:
    parts = [str(random.randint(1, 28)), random.choice(MONTHS), str(random.randint(1900, 2029))]
    return parts, " ".join(parts)


def _year(random: Random) -> tuple[str, str]:
    parts, text = _day(random)
    return f"Year: {text}", parts[2]


def _month_of(random: Random) -> tuple[str, str]:
    parts, text = _day(random)
    return f"Month: {text}", parts[1]


def _turned_date(random: Random) -> tuple[str, str]:
    parts, text = _day(random)
    return f"Turn: {text}", " ".join(reversed(parts))


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
        _wrap,
        _bracket,
        _end,
        _plea,
        _backwards,
        _order,
        _signs,
        _letters,
        _last_sign,
        _open,
        _capitals,
        _glue,
        _month,
        _month_name,
        _part_of_day,
        _minutes,
        _hour,
        _twelve,
        _year,
        _month_of,
        _turned_date,
    )
}
"""Name → what draws a question and its answer."""


def exercise(random: Random) -> tuple[str, str]:
    """One question and its answer, of any rule."""
    return random.choice(list(EXERCISES.values()))(random)
