"""Whether two bases, or two series, agree: how alike they rank the arms that were run on both."""

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


def agreement(found: Mapping[str, Found], *, paired: bool = True) -> str:
    """A row for each outcome, for each pair of what is found; the arms' means side by side below. Empty for one alone.

    Arms are ranked over blocks that every common arm has. An arm that was run on less than half as many as another is
    left out, since all would be ranked over its few.

    Args:
        found: name → arms, on bases or in series.
        paired: whether blocks must be the same on both sides, as bases of one series have them; those of two series
            are never the same.
    """
    parts = []
    for (name, one), (other_name, other) in itertools.combinations(found.items(), 2):
        sides = [_common(one, other), _common(other, one)] if paired else [one, other]
        arms = [arm for arm in sides[0] if all(_enough(side, arm) for side in sides)]
        held = [_of_all(side, arms) for side in sides]
        blocks = [len(next(iter(side.values()), {})) for side in held]
        if len(arms) < LEAST or not all(blocks):
            continue
        parts.append(f"## {name} and {other_name}\n\n{_compared((name, other_name), *held)}")
        if paired:
            parts.append(f"Blocks that all these arms have on both bases: {blocks[0]}.")
        else:
            parts.append(f"Blocks that all these arms have: {blocks[0]} and {blocks[1]}, which are no pairs.")
    return "\n\n".join(parts)


def _common(found: Found, other: Found) -> Found:
    """The blocks that an arm has in the other too."""
    return {
        arm: {block: one for block, one in blocks.items() if block in other[arm]}
        for arm, blocks in found.items()
        if arm in other
    }


def _enough(found: Found, arm: Arm) -> bool:
    return arm in found and 2 * len(found[arm]) >= max(map(len, found.values()))


def _of_all(found: Found, arms: list[Arm]) -> Found:
    """These arms, over the blocks that all of them have."""
    blocks = [block for block in found[arms[0]] if all(block in found[arm] for arm in arms)] if arms else []
    return {arm: {block: found[arm][block] for block in blocks} for arm in arms}


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
