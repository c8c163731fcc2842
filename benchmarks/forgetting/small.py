"""Whether a few blocks alone say what all of them say: the claim of `make study-small`, held against the kept runs."""

from __future__ import annotations

from collections.abc import Mapping

from .compare import OUTCOMES, Comparison, compare, comparisons
from .plan import Arm
from .scores import Block, Scores

__all__ = ["small", "verdict"]

Found = Mapping[Arm, Mapping[Block, Scores]]
SEEDS = (0,)
"""Of the small study; its orders are those of the whole."""


def verdict(one: Comparison) -> str:
    """`more` or `less` where the interval is on one side of zero, else `open`."""
    _, low, high = one.difference
    if low > 0:
        return "more"
    return "less" if high < 0 else "open"


def small(found: Found) -> str:
    """A row for each comparison that both can make; empty where all blocks are of the small study."""
    fewer = {arm: {block: one for block, one in blocks.items() if block[1] in SEEDS} for arm, blocks in found.items()}
    rows, alike, contrary = [], 0, 0
    for arm, other in comparisons(found):
        for outcome, heading in OUTCOMES.items():
            whole, part = compare(found, arm, other, outcome), compare(fewer, arm, other, outcome)
            if whole is None or part is None or part.blocks < 2 or part.blocks == whole.blocks:
                continue
            told = verdict(whole), verdict(part)
            alike += told[0] == told[1]
            contrary += set(told) == {"more", "less"}
            rows.append(
                f"| {arm} | {other} | {heading} | {whole.difference[0]:+.3f}, {told[0]} ({whole.blocks}) | "
                f"{part.difference[0]:+.3f}, {told[1]} ({part.blocks}) |"
            )
    if not rows:
        return ""
    return "\n".join(
        [
            f"The blocks of seed 0 alone, which `make study-small` runs, against all: {alike} of {len(rows)} "
            f"comparisons come out alike, {contrary} contrary. *more*, *less*: the interval of the difference is on "
            "one side of zero; *open*: it holds zero. In brackets: blocks.",
            "",
            "| arm | against | outcome | all blocks | seed 0 |",
            "| --- | --- | --- | --: | --: |",
            *rows,
        ]
    )
