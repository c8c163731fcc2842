"""Which arms are compared with which, block by block, in what, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.study.statistics import bootstrap, holm, paired_p

from .plan import Arm
from .scores import Block, Scores

__all__ = ["OUTCOMES", "REFERENCE", "Comparison", "adjusted", "compare", "comparisons", "question"]

REFERENCE = "lora r8 linear"
"""The method that others are compared with, in the same regime with the same remedy."""
OUTCOMES = {
    "learnt": "accuracy learnt",
    "forgetting": "accuracy forgotten",
    "loss_rise": "answer loss rise",
    "final": "final accuracy",
    "text": "text loss rise",
}
"""Score → what it is called in a table."""
Found = Mapping[Arm, Mapping[Block, Scores]]


@dataclass(frozen=True)
class Comparison:
    """One arm against another, in one outcome.

    Attributes:
        arm: whose value is taken.
        against: whose value is subtracted.
        outcome: of `OUTCOMES`.
        difference: mean over common blocks, and its interval.
        p: of sign flips, before any correction.
        blocks: how many the two have in common.
    """

    arm: Arm
    against: Arm
    outcome: str
    difference: tuple[float, float, float]
    p: float
    blocks: int


def comparisons(found: Found) -> list[tuple[Arm, Arm]]:
    """(arm, other): each method with the reference; what has a remedy, or a regime of its own, with its plain self."""
    pairs = []
    for arm in found:
        reference = replace(arm, method=REFERENCE)
        if arm.method != REFERENCE and reference in found:
            pairs.append((arm, reference))
        plain = Arm(arm.method, times=arm.times)
        if arm != plain and plain in found:
            pairs.append((arm, plain))
    return pairs


def compare(found: Found, arm: Arm, against: Arm, outcome: str) -> Comparison | None:
    """The paired difference over blocks that both arms have; None where there are none, or values that are unknown."""
    common = [block for block in found[arm] if block in found[against]]
    differences = [
        float(getattr(found[arm][block], outcome) - getattr(found[against][block], outcome)) for block in common
    ]
    if not differences or any(value != value for value in differences):
        return None
    return Comparison(arm, against, outcome, bootstrap(differences), paired_p(differences), len(common))


def adjusted(made: list[Comparison]) -> list[float]:
    """p of each, by Holm over those that answer one question; see `question`."""
    found = [0.0] * len(made)
    for asked in {question(one) for one in made}:
        own = {str(number): one.p for number, one in enumerate(made) if question(one) == asked}
        for number, p in holm(own).items():
            found[int(number)] = p
    return found


def question(one: Comparison) -> tuple[str, ...]:
    """What a comparison asks: which method, in one outcome, regime and with one remedy; or what a remedy or a regime
    of its own changes, in one outcome."""
    if one.arm.method != one.against.method:
        return one.outcome, one.arm.regime, one.arm.remedy
    return (one.outcome,)
