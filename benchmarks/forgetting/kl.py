"""Whether KL(tuned ‖ base), accuracy or parameters tell how much a method forgets that was left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from benchmarks.study import predict
from benchmarks.study.statistics import spearman

from .compare import OUTCOMES
from .plan import Arm
from .scores import Block, Scores

__all__ = ["EQUAL", "PREDICTORS", "equal_accuracy", "left_out", "of_kl", "predictions"]

Found = Mapping[Arm, Mapping[Block, Scores]]
EQUAL = 0.05
"""Arms whose skills are learnt as well as the best but for so much are compared at equal accuracy."""
SAID_OF = ("forgetting", "share", "loss_rise", "text")
HEADINGS = {**OUTCOMES, "share": "share forgotten"}


def mean_of(blocks: Mapping[Block, Scores], name: str) -> float:
    """The mean of a score over blocks."""
    values = [float(getattr(one, name)) for one in blocks.values()]
    return sum(values) / len(values)


PREDICTORS: dict[str, Callable[[Mapping[Block, Scores]], float]] = {
    "KL": lambda blocks: math.log(max(mean_of(blocks, "kl"), 1e-9)),
    "learnt": lambda blocks: mean_of(blocks, "learnt"),
    "parameters": lambda blocks: math.log(max(mean_of(blocks, "parameters"), 1.0)),
}
"""Name → what a line is fitted in; KL and parameters by their logarithms."""


def equal_accuracy(found: Found) -> list[Arm]:
    """Arms whose skills are learnt nearly as well as the best arm's, by rising forgetting."""
    best = max(mean_of(found[arm], "learnt") for arm in found)
    kept = [arm for arm in found if mean_of(found[arm], "learnt") >= best - EQUAL]
    return sorted(kept, key=lambda arm: mean_of(found[arm], "forgetting"))


def plain(found: Found) -> dict[Arm, Mapping[Block, Scores]]:
    """Arms that are trained on without a remedy: a switch or a stack forgets by another mechanism."""
    return {arm: blocks for arm, blocks in found.items() if arm.regime == "continue" and arm.remedy == "none"}


def left_out(found: Found, outcome: str = "forgetting", by: str = "KL") -> dict[Arm, tuple[float, float]]:
    """Plain arm → (its outcome, what a line in one of `PREDICTORS`, fitted to arms of other methods, says it is)."""
    at = PREDICTORS[by]
    points = {arm: (at(blocks), mean_of(blocks, outcome)) for arm, blocks in plain(found).items()}
    return predict.left_out(points, lambda arm: arm.method)


def predictions(found: Found, outcome: str = "forgetting", by: str = "KL") -> tuple[float, float]:
    """Mean absolute error of `left_out`, and that of saying the mean of the others; NaN where there are too few."""
    return predict.errors(left_out(found, outcome, by))


def of_kl(found: Found) -> str:
    """The table of what tells how much is forgotten, and which arms learnt equally well."""
    held = plain(found)
    names = list(PREDICTORS)
    rows = [
        f"Over the {len(held)} arms trained on without a remedy: rank correlation of each outcome with "
        "KL(tuned ‖ base) on the new skill's questions, with how well skills were learnt and with parameters trained; "
        "and how far a line in one of them (KL and parameters by their logarithms), fitted without a method, misses "
        "that method, against how far the mean of the other methods does.",
        "",
        f"| outcome | {' | '.join(f'rank correlation with {name}' for name in names)} | "
        f"{' | '.join(f'line in {name} misses by' for name in names)} | mean misses by |",
        f"| --- | {' | '.join('--:' for _ in range(2 * len(names) + 1))} |",
    ]
    for outcome in SAID_OF:
        values = [mean_of(blocks, outcome) for blocks in held.values()]
        ranked = [spearman([PREDICTORS[name](blocks) for blocks in held.values()], values) for name in names]
        missed = [predictions(found, outcome, name) for name in names]
        shown = [*ranked, *(line for line, _ in missed), missed[0][1]]
        rows.append(f"| {HEADINGS[outcome]} | {' | '.join(map(_shown, shown))} |")
    equal = "; ".join(f"{arm.method} {mean_of(held[arm], 'forgetting'):.3f}" for arm in equal_accuracy(held))
    told = f"Learnt within {EQUAL} of the best of these, by accuracy forgotten: {equal}." if held else ""
    return "\n".join([*rows, "", told])


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"
