"""The tables of the study of forgetting, from its runs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.study.statistics import bootstrap, coverage, seen_effect, shown_p

from .compare import OUTCOMES, REFERENCE, Comparison, adjusted, compare, comparisons
from .kl import mean_of, of_kl
from .plan import Arm
from .scores import Block, Scores

__all__ = ["EXPLAINED", "compared", "markdown", "table"]

LEAST = 0.05
FLOOR = (
    f"**No arm learns a skill to more than {LEAST:.0%} of exact answers: what is not known cannot be forgotten, so "
    "forgetting, transfer and their tests say nothing here, and arms that learnt less also moved less.**"
)
COLUMNS = {
    "learnt": "learnt",
    "final": "final",
    "forgetting": "forgetting",
    "share": "share forgotten",
    "backward": "backward transfer",
    "forward": "forward transfer",
    "loss_rise": "answer loss rise",
    "gain_kept": "gain kept",
    "kl": "KL(tuned ‖ base)",
    "text": "text loss rise",
}
"""Score → heading."""
EXPLAINED = (
    "In brackets: 95 % bootstrap intervals of the mean over blocks (order × seed); one block has none. *learnt*: "
    "exact answers just after a skill was learnt; *final*: after the last one, over all skills; *forgetting*: "
    "accuracy lost on all skills but the last, and as a share of what was known; *answer loss rise*: nats per "
    "token of their answers since they were learnt, which goes on telling where accuracy is at its floor; *gain "
    "kept*: how much of what learning took off that loss is still off it at the end (1: all, 0: as before "
    "learning, below: worse)."
)

Found = Mapping[Arm, Mapping[Block, Scores]]


def markdown(found: Found) -> str:
    """A row for each arm, by rising loss of former answers; paired comparisons; what KL predicts."""
    floor = [FLOOR, ""] if max((mean_of(found[arm], "learnt") for arm in found), default=1.0) < LEAST else []
    told = [*floor, table(found), "", EXPLAINED, "", "## Compared, block by block", ""]
    return "\n".join([*told, compared(found, comparisons(found)), "", "## KL", "", of_kl(found)])


def table(found: Found) -> str:
    """A row for each arm, by rising loss of former answers."""
    rows = [
        f"| arm | {' | '.join(COLUMNS.values())} | blocks |",
        f"| --- | {' | '.join('--:' for _ in COLUMNS)} | --: |",
    ]
    for arm in sorted(found, key=lambda arm: mean_of(found[arm], "loss_rise")):
        told = [_ranged(bootstrap([getattr(one, name) for one in found[arm].values()])) for name in COLUMNS]
        rows.append(f"| {arm} | {' | '.join(told)} | {len(found[arm])} |")
    return "\n".join(rows)


def compared(found: Found, pairs: Sequence[tuple[Arm, Arm]]) -> str:
    """A row for each pair of arms, with the outcomes beside one another."""
    made = [compare(found, arm, other, outcome) for arm, other in pairs for outcome in OUTCOMES]
    known = [one for one in made if one is not None]
    corrected = {(one.arm, one.against, one.outcome): p for one, p in zip(known, adjusted(known), strict=True)}
    by_place = {(one.arm, one.against, one.outcome): one for one in known}
    rows = [
        f"| arm | against | {' | '.join(OUTCOMES.values())} | blocks |",
        f"| --- | --- | {' | '.join('--:' for _ in OUTCOMES)} | --: |",
    ]
    for arm, other in pairs:
        places = [(arm, other, outcome) for outcome in OUTCOMES]
        told = [_difference(by_place[one], corrected[one]) if one in by_place else "" for one in places]
        blocks = next((str(by_place[one].blocks) for one in places if one in by_place), "0")
        rows.append(f"| {arm} | {other} | {' | '.join(told)} | {blocks} |")
    return "\n".join([*rows, "", _limits([one.blocks for one in known])])


def _difference(one: Comparison, p: float) -> str:
    mean, low, high = one.difference
    interval = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
    return f"{mean:+.3f}{interval}, p {shown_p(p)}"


def _limits(blocks: list[int]) -> str:
    told = (
        "Differences are arm minus the other, over the blocks that both have: with "
        f"`{REFERENCE}` in the same regime with the same remedy, and of what has a remedy or a regime of its own with "
        "its method trained on without one. p by sign flips, two-sided; Holm over the methods of one regime and "
        "remedy, or over all remedies and regimes, for each outcome apart. "
    )
    pairs = max(blocks, default=0)
    if pairs < 2:
        return f"{told}With fewer than two pairs nothing can be tested."
    return (
        f"{told}With {pairs} pairs, the most here, p is at least {_shown(2.0 ** (1 - pairs))} before Holm; a paired t "
        f"test at α .05 would find with power .8 differences of {seen_effect(pairs):.2f} standard deviations, and "
        "smaller ones cannot be seen here; and bootstrap intervals hold the mean in about "
        f"{coverage(pairs):.0%} of cases, not in 95 %. Of fewer pairs all this is worse."
    )


def _ranged(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"
