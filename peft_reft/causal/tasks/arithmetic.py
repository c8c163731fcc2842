"""Sums of two numbers of two digits; the first digit of the sum depends on a carry."""

from __future__ import annotations

import random

from peft_reft.causal.model import CausalModel, Values

from .task import Task

__all__ = ["ARITHMETIC"]

SHOTS = "12+13=25\n38+14=52\n27+22=49\n45+36=81\n"
"""Before every question: small models do not add otherwise."""
LARGEST = 8
"""Of the sum of both tens, so that no sum reaches 100: its first digit is its tens."""


def _draw(generator: random.Random) -> Values:
    first = generator.randint(1, LARGEST - 1)
    return {
        "tens1": first,
        "tens2": generator.randint(1, LARGEST - first),
        "ones1": generator.randrange(10),
        "ones2": generator.randrange(10),
    }


def _prompt(values: Values) -> str:
    return f"{SHOTS}{values['tens1']}{values['ones1']}+{values['tens2']}{values['ones2']}="


def _carried(generator: random.Random, base: Values) -> Values:
    """Other ones, with a carry where the base has none, and none where it has: the tens stay."""
    wanted = base["ones1"] + base["ones2"] < 10
    ones = [(one, two) for one in range(10) for two in range(10) if (one + two >= 10) == wanted]
    first, second = generator.choice(ones)
    return {**base, "ones1": first, "ones2": second}


ARITHMETIC = Task(
    name="arithmetic",
    causal_model=CausalModel(
        {
            "carry": lambda ones1, ones2: int(ones1 + ones2 >= 10),
            "tens": lambda tens1, tens2: tens1 + tens2,
            "answer": lambda tens, carry: tens + carry,
        },
        inputs={
            "tens1": range(1, LARGEST),
            "tens2": range(1, LARGEST),
            "ones1": range(10),
            "ones2": range(10),
        },
    ),
    variables={"carry": "whether the ones add up to ten or more", "tens": "the sum of the tens"},
    prompt=_prompt,
    answers={digit: str(digit) for digit in range(2, LARGEST + 2)},
    places={
        "last": lambda values, text: len(text),
        "second": lambda values, text: len(text) - 1,
        "first": lambda values, text: len(text) - 4,
    },
    draw=_draw,
    counterfactuals={"random": lambda generator, base: _draw(generator), "carry": _carried},
)
"""Two-digit addition (MIB's arithmetic): does the model carry? Only the sum's first digit is read."""
