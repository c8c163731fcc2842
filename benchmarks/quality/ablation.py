"""What each choice of a ReFT does: one thing is changed at a time, and both are compared by skill and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.study.statistics import bootstrap, holm, paired_p, seen_effect, shown_p

from .report import by_block

__all__ = ["CHANGES", "OUTCOMES", "Change", "Effect", "ablation", "effects"]


@dataclass(frozen=True)
class Change:
    """A question, and the two methods whose difference answers it.

    Attributes:
        asked: what is changed.
        method: that has the change.
        against: that has not; all else is equal but for the learning rate, which each chose for itself.
    """

    asked: str
    method: str
    against: str


CHANGES = (
    Change("positions: the last token of the prompt alone", "loreft r4 l1", "loreft r4"),
    Change("positions: the whole prompt", "loreft r4 prompt", "loreft r4"),
    Change("positions: all tokens, beyond the prompt", "loreft r4 all", "loreft r4 prompt"),
    Change("layers: every other", "loreft r4 every other layer", "loreft r4"),
    Change("layers: the last half", "loreft r4 last half", "loreft r4"),
    Change("orthogonality: R free", "noreft r4", "loreft r4"),
    Change("orthogonality: R free, without subtraction", "direft r4", "direft_orthogonal r4"),
    Change("subtraction: none", "direft_orthogonal r4", "loreft r4"),
    Change("subtraction: none, R free", "direft r4", "noreft r4"),
    Change("subtraction: none, R free, all tokens", "direft r4 all", "loreft r4 all"),
    Change("tying: first and last tokens have edits of their own", "loreft r4 apart", "loreft r4"),
    Change("initialisation: the paper's", "loreft r4 paper's start", "loreft r4"),
    Change("rank 1", "loreft r1", "loreft r4"),
    Change("rank 16", "loreft r16", "loreft r4"),
)
OUTCOMES = {"accuracy": "accuracy", "loss": "answer loss", "text loss rise": "text loss rise"}
"""Result → heading."""


@dataclass(frozen=True)
class Effect:
    """A change's difference in one outcome.

    Attributes:
        difference: mean over blocks (skill × seed) that both have, and its interval.
        p: of sign flips, adjusted by Holm over all changes, for each outcome apart.
        blocks: how many.
    """

    difference: tuple[float, float, float]
    p: float
    blocks: int


def effects(runs: Iterable[Mapping[str, Any]]) -> dict[Change, dict[str, Effect]]:
    """Change → outcome → effect, of the changes of which both sides have been run on common blocks."""
    found = by_block(runs)
    pairs = {
        change: [block for block in found[change.method] if block in found[change.against]]
        for change in CHANGES
        if change.method in found and change.against in found
    }
    told: dict[Change, dict[str, Effect]] = {change: {} for change, blocks in pairs.items() if blocks}
    for outcome in OUTCOMES:
        values = {
            change: [found[change.method][one][outcome] - found[change.against][one][outcome] for one in pairs[change]]
            for change in told
        }
        adjusted = holm({change.asked: paired_p(held) for change, held in values.items()})
        for change, held in values.items():
            told[change][outcome] = Effect(bootstrap(held), adjusted[change.asked], len(held))
    return told


def ablation(runs: Iterable[Mapping[str, Any]]) -> str:
    """The table; empty where no two sides of a change have been run."""
    told = effects(runs)
    if not told:
        return ""
    rows = [
        f"| change | method | against | {' | '.join(OUTCOMES.values())} | blocks |",
        f"| --- | --- | --- | {' | '.join('--:' for _ in OUTCOMES)} | --: |",
    ]
    for change, found in told.items():
        shown = " | ".join(_shown(found[outcome]) for outcome in OUTCOMES)
        rows.append(f"| {change.asked} | {change.method} | {change.against} | {shown} | {found['accuracy'].blocks} |")
    blocks = max(found["accuracy"].blocks for found in told.values())
    return "\n".join(
        [
            *rows,
            "",
            "Differences are the changed method minus the other, paired by block (skill × seed), with 95 % bootstrap "
            f"intervals; p by sign flips, Holm over the {len(told)} changes. With {blocks} pairs, the most here, a "
            f"paired t test at α .05 would find {seen_effect(blocks):.2f} standard deviations with power .8.",
        ]
    )


def _shown(one: Effect) -> str:
    mean, low, high = one.difference
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], p {shown_p(one.p)}"
