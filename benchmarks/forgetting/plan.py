"""Which runs the study of forgetting is made of: arms (method, regime, remedy) × orders of the skills × seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from benchmarks.quality.plan import Grid
from benchmarks.quality.search import rounded
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import Settings
from benchmarks.study.series import USUAL_TIMES

__all__ = ["ARMS", "REGIMES", "REMEDIES", "Arm", "arms_of", "orders", "plan"]

REGIMES = ("continue", "stacked", "switched")
"""One adapter is trained on; a new adapter each, all of them on; a new one each, and each skill asked with its own."""
REMEDIES = ("none", "replay", "anchor", "orthogonal")


@dataclass(frozen=True)
class Arm:
    """What is compared: a method in a regime with a remedy, at so many times the rate that the search chose."""

    method: str
    regime: str = "continue"
    remedy: str = "none"
    times: str = USUAL_TIMES

    def __str__(self) -> str:
        extra = "" if self.remedy == "none" else f", {self.remedy}"
        return f"{self.method}, {self.regime}{extra}{'' if self.times == USUAL_TIMES else f', rate × {self.times}'}"


def arms_of(
    methods: Sequence[str], *, regimes: Sequence[str], remedies: Sequence[str], times: str = USUAL_TIMES
) -> list[Arm]:
    """All arms that have a meaning, at one multiple of the searched rates.

    Full fine-tuning and mixed adapters are trained on only; the orthogonal remedy is of stacked ReFT with an R; replay
    and the anchor are of one adapter trained on.
    """
    found = []
    for method in methods:
        for regime in regimes:
            for remedy in remedies:
                arm = Arm(method, regime, remedy, times)
                if _has_meaning(arm):
                    found.append(arm)
    return found


def _has_meaning(arm: Arm) -> bool:
    method = METHODS[arm.method]
    if arm.regime == "stacked" and not method.stacks:
        return False
    if arm.regime == "switched" and method.family in ("full", "mixed"):
        return False
    if arm.remedy == "orthogonal":
        return arm.regime == "stacked" and arm.method.startswith(("loreft", "direft_orthogonal"))
    return arm.remedy == "none" or arm.regime == "continue"


ARMS = arms_of(
    ["loreft r4", "loreft r4 all", "direft r4", "lora r1 qv", "lora r8 linear", "full"],
    regimes=REGIMES,
    remedies=REMEDIES,
)


def orders(skills: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Orders of the skills: the one given, it reversed, then random ones; all different.

    Raises:
        ValueError: there are not as many.
    """
    if count > math.factorial(len(skills)):
        raise ValueError(f"orders={count}: {len(skills)} skills have {math.factorial(len(skills))}")
    random, found = Random(0), [tuple(skills)]
    if count > 1:
        found.append(tuple(reversed(skills)))
    while len(found) < count:
        order = list(skills)
        random.shuffle(order)
        if tuple(order) not in found:
            found.append(tuple(order))
    return found[:count]


def plan(grid: Grid, arms: Sequence[Arm], rates: Mapping[str, float], count: int) -> list[Settings]:
    """One run for each seed, order and arm whose method's rate is known; a block of all arms after the other."""
    return [
        {
            **grid.common(),
            "study": "forgetting",
            "method": arm.method,
            "regime": arm.regime,
            "remedy": arm.remedy,
            "order": list(order),
            "rate": rounded(rates[arm.method] * Fraction(arm.times)),
            "seed": seed,
            **({} if arm.times == USUAL_TIMES else {"times": arm.times}),
        }
        for seed in grid.seeds
        for order in orders(grid.skills, count)
        for arm in arms
        if arm.method in rates
    ]
