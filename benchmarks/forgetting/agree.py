"""Whether two bases agree: how alike they rank the arms that were run on both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from benchmarks.study.statistics import spearman

from .compare import OUTCOMES
from .kl import mean_of
from .plan import Arm
from .scores import Block, Scores

__all__ = ["agreement", "common_arms"]

Found = Mapping[Arm, Mapping[Block, Scores]]
LEAST = 4
"""Common arms below which a rank correlation is not told: of three, any order has a chance of one in six."""


def common_arms(one: Found, other: Found) -> list[Arm]:
    """Arms that both have."""
    return [arm for arm in one if arm in other]


def agreement(bases: Mapping[str, Found]) -> str:
    """A row for each pair of bases and each outcome; the arms' means side by side below. Empty for a single base."""
    parts = []
    for (name, one), (other_name, other) in itertools.combinations(bases.items(), 2):
        arms = common_arms(one, other)
        if len(arms) < LEAST:
            continue
        rows = [
            f"## {name} and {other_name}",
            "",
            "| outcome | rank correlation | over no-remedy arms | over replayed |",
        ]
        rows.append("| --- | --: | --: | --: |")
        for outcome, heading in OUTCOMES.items():
            subsets = [arms, *([arm for arm in arms if arm.remedy == remedy] for remedy in ("none", "replay"))]
            told = [_correlation(one, other, held, outcome) for held in subsets]
            rows.append(f"| {heading} | {' | '.join(told)} |")
        rows += ["", f"| arm | {' | '.join(f'{heading}, {name} / {other_name}' for heading in OUTCOMES.values())} |"]
        rows.append(f"| --- | {' | '.join('--:' for _ in OUTCOMES)} |")
        for arm in arms:
            values = [f"{mean_of(one[arm], name):.3f} / {mean_of(other[arm], name):.3f}" for name in OUTCOMES]
            rows.append(f"| {arm} ({len(one[arm])} / {len(other[arm])} blocks) | {' | '.join(values)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _correlation(one: Found, other: Found, arms: list[Arm], outcome: str) -> str:
    """Spearman's, and how many arms it is over."""
    if len(arms) < LEAST - 1:
        return ""
    value = spearman([mean_of(one[arm], outcome) for arm in arms], [mean_of(other[arm], outcome) for arm in arms])
    return "unknown" if math.isnan(value) else f"{value:.2f} ({len(arms)} arms)"
