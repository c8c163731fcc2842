"""Indirect objects: "When Anna and Tom went to the park, Tom gave a drink to" goes on with " Anna"."""

from __future__ import annotations

import random

from peft_reft.causal.model import CausalModel, Values

from .task import Task

__all__ = ["IOI"]

NAMES = (
    "Anna", "Tom", "Lisa", "Peter", "Sarah", "David", "Maria", "James", "Mary", "John", "Paul", "Emma",
    "Jack", "Kate", "Mark", "Laura", "Alice", "Robert", "Helen", "Simon", "Susan", "Martin", "Daniel", "Julia",
)  # fmt: skip
"""One token each, with the space before, in the tokenizers of SmolLM2 and GPT-2."""
PLACES = ("store", "park", "station", "garden", "library", "office")
THINGS = ("drink", "book", "letter", "key", "ring", "map")
TEMPLATES = (
    "When {first} and {second} went to the {place}, {again} gave a {thing} to",
    "After {first} and {second} had met at the {place}, {again} sent a {thing} to",
    "While {first} and {second} were at the {place}, {again} showed a {thing} to",
)


def _draw(generator: random.Random) -> Values:
    one, two = generator.sample(NAMES, 2)
    return {
        "first": one,
        "second": two,
        "again": generator.choice((one, two)),
        "template": generator.randrange(len(TEMPLATES)),
        "place": generator.choice(PLACES),
        "thing": generator.choice(THINGS),
    }


def _prompt(values: Values) -> str:
    return TEMPLATES[values["template"]].format(**values)


def _other(values: Values) -> str:
    name: str = values["second"] if values["again"] == values["first"] else values["first"]
    return name


def _turned(generator: random.Random, base: Values) -> Values:
    """Both names in the other order: the position is another one, the name the same."""
    return {**base, "first": base["second"], "second": base["first"]}


def _renamed(generator: random.Random, base: Values) -> Values:
    """Two other names in the same order: the name is another one, its position the same."""
    one, two = generator.sample([name for name in NAMES if name not in (base["first"], base["second"])], 2)
    return {**base, "first": one, "second": two, "again": one if base["again"] == base["first"] else two}


IOI = Task(
    name="ioi",
    causal_model=CausalModel(
        {
            "position": lambda first, again: int(again == first),
            "token": lambda first, second, position: (first, second)[position],
            "answer": lambda token: token,
        },
        inputs={
            **dict.fromkeys(("first", "second", "again"), NAMES),
            "template": range(len(TEMPLATES)),
            "place": PLACES,
            "thing": THINGS,
        },
        output="answer",
    ),
    variables={
        "position": "whether the first or the second name is the one that is not there twice",
        "token": "the name that is not there twice",
    },
    prompt=_prompt,
    answers={name: f" {name}" for name in NAMES},
    places={
        "last": lambda values, text: len(text),
        "subject": lambda values, text: text.rindex(values["again"]) + len(values["again"]),
        "asked": lambda values, text: text.index(f" {_other(values)}") + 1 + len(_other(values)),
    },
    draw=_draw,
    counterfactuals={
        "random": lambda generator, base: _draw(generator),
        "order": _turned,
        "subject": lambda generator, base: {**base, "again": _other(base)},
        "names": _renamed,
    },
)
"""Indirect object identification (arXiv 2211.00593), with MIB's two variables: where the name is, and which it is.

MIB lets both act on a difference of logits; here the position decides which name is the token, which is the answer.
"""
