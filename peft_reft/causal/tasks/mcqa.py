"""Multiple choice: the colour stands in the question, the answer is the letter before it."""

from __future__ import annotations

import random
import string
from typing import Any

from peft_reft.causal.model import CausalModel, Values

from .task import Task

__all__ = ["MCQA", "letter_spaced"]

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink", "purple", "orange", "grey")
THINGS = ("box", "car", "door", "hat", "lamp", "cup", "chair", "bag", "flower", "coat", "boat", "shirt")
LETTERS = tuple(string.ascii_uppercase)
CHOICES = 4
_NUMBERS = tuple(range(CHOICES))


def _draw(generator: random.Random) -> Values:
    colours, letters = generator.sample(COLOURS, CHOICES), generator.sample(LETTERS, CHOICES)
    return {
        "thing": generator.choice(THINGS),
        "colour": generator.choice(colours),
        **{f"choice{number}": colours[number] for number in _NUMBERS},
        **{f"letter{number}": letters[number] for number in _NUMBERS},
    }


def _prompt(values: Values) -> str:
    told = f"The {values['thing']} is {values['colour']}. What color is the {values['thing']}?"
    lines = [f"{values[f'letter{number}']}. {values[f'choice{number}']}" for number in _NUMBERS]
    return "\n".join([f"Question: {told}", *lines, "Answer:"])


def _pointer(colour: str, choice0: str, choice1: str, choice2: str, choice3: str) -> int:
    return (choice0, choice1, choice2, choice3).index(colour)


def _answer(pointer: int, letter0: str, letter1: str, letter2: str, letter3: str) -> str:
    return (letter0, letter1, letter2, letter3)[pointer]


def _moved(generator: random.Random, base: Values) -> Values:
    """The right colour changes places with another one: the letters stay."""
    own = _pointer(base["colour"], *(base[f"choice{number}"] for number in _NUMBERS))
    other = generator.choice([number for number in _NUMBERS if number != own])
    swapped = {f"choice{own}": base[f"choice{other}"], f"choice{other}": base[f"choice{own}"]}
    return {**base, **swapped}


def _relettered(generator: random.Random, base: Values) -> Values:
    """Four other letters: the right one's place stays."""
    used = {base[f"letter{number}"] for number in _NUMBERS}
    letters = generator.sample([letter for letter in LETTERS if letter not in used], CHOICES)
    return {**base, **{f"letter{number}": letters[number] for number in _NUMBERS}}


def _both(generator: random.Random, base: Values) -> Values:
    return _relettered(generator, _moved(generator, base))


def letter_spaced(values: Values, text: str) -> int:
    """Where the right answer's letter ends in the prompt."""
    pointer: Any = MCQA.causal_model.run(values)["pointer"]
    return text.index(f"\n{values[f'letter{pointer}']}. ") + 2


MCQA = Task(
    name="mcqa",
    causal_model=CausalModel(
        {"pointer": _pointer, "answer": _answer},
        inputs={
            "thing": THINGS,
            "colour": COLOURS,
            **{f"choice{number}": COLOURS for number in _NUMBERS},
            **{f"letter{number}": LETTERS for number in _NUMBERS},
        },
    ),
    variables={
        "pointer": "which of the four choices is the right one",
        "answer": "the letter before it",
    },
    prompt=_prompt,
    answers={letter: f" {letter}" for letter in LETTERS},
    places={"last": lambda values, text: len(text), "letter": letter_spaced},
    draw=_draw,
    counterfactuals={
        "random": lambda generator, base: _draw(generator),
        "position": _moved,
        "letters": _relettered,
        "both": _both,
    },
)
"""Copying a colour, four choices (MIB's simple MCQA): the pointer to the right choice, then the letter that it has."""
