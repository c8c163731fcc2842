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

__all__ = ["agreement"]

Found = Mapping[Arm, Mapping[Block, Scores]]
LEAST = 4
"""Arms below which a rank correlation is not told: of three, any order has a chance of one in six."""


def agreement(bases: Mapping[str, Found]) -> str:
    """A row for each pair of bases and each outcome; the arms' means side by side below. Empty for a single base.

    Arms are ranked over the same blocks: those that every common arm has on both bases. An arm that was run on less
    than half as many as another is left out, since all would be ranked over its few.
    """
    parts = []
    for (name, one), (other_name, other) in itertools.combinations(bases.items(), 2):
        shared = {arm: set(one[arm]) & set(other[arm]) for arm in one if arm in other}
        most = max(map(len, shared.values()), default=0)
        arms = [arm for arm, held in shared.items() if 2 * len(held) >= most]
        blocks = set.intersection(*(shared[arm] for arm in arms)) if arms else set()
        if len(arms) < LEAST or not blocks:
            continue
        held = [{arm: {block: base[arm][block] for block in blocks} for arm in arms} for base in (one, other)]
        parts.append(f"## {name} and {other_name}\n\n{_compared((name, other_name), *held)}")
        parts.append(f"Blocks that all these arms have on both bases: {len(blocks)}.")
    return "\n\n".join(parts)


def _compared(names: tuple[str, str], one: Found, other: Found) -> str:
    rows = ["| outcome | rank correlation | of arms without a remedy | with replay |", "| --- | --: | --: | --: |"]
    for outcome, heading in OUTCOMES.items():
        subsets = [list(one), *([arm for arm in one if arm.remedy == remedy] for remedy in ("none", "replay"))]
        rows.append(f"| {heading} | {' | '.join(_correlation(one, other, arms, outcome) for arms in subsets)} |")
    both = " / ".join(names)
    rows += ["", f"| arm | {' | '.join(f'{heading}, {both}' for heading in OUTCOMES.values())} |"]
    rows.append(f"| --- | {' | '.join('--:' for _ in OUTCOMES)} |")
    for arm in one:
        values = [f"{mean_of(one[arm], outcome):.3f} / {mean_of(other[arm], outcome):.3f}" for outcome in OUTCOMES]
        rows.append(f"| {arm} | {' | '.join(values)} |")
    return "\n".join(rows)


def _correlation(one: Found, other: Found, arms: list[Arm], outcome: str) -> str:
    """Spearman's, and how many arms it is over."""
    if len(arms) < LEAST:
        return ""
    value = spearman([mean_of(one[arm], outcome) for arm in arms], [mean_of(other[arm], outcome) for arm in arms])
    return "unknown" if math.isnan(value) else f"{value:.2f} ({len(arms)} arms)"
