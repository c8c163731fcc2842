"""The table and figures of the study of forgetting, from its runs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.study.statistics import bootstrap, holm, paired_p, seen_effect, spearman

from .plan import Arm
from .scores import Block, Scores

__all__ = ["REFERENCE", "equal_accuracy", "left_out", "markdown", "predictions"]

REFERENCE = Arm("lora r8 linear")
"""What every arm is compared with, block by block."""
EQUAL = 0.05
"""Arms whose skills are learnt as well as the best but for so much are compared at equal accuracy."""
LEAST = 0.05
FLOOR = (
    f"**No arm learns a skill to more than {LEAST:.0%} of exact answers: what is not known cannot be forgotten, so "
    "forgetting, transfer and their tests say nothing here, and arms that learnt less also moved less.**"
)

Found = Mapping[Arm, Mapping[Block, Scores]]


def markdown(found: Found) -> str:
    """A row for each arm, by rising forgetting; what the tests can see; what KL predicts."""
    rows = [
        "| arm | learnt | final | forgetting | share forgotten | backward transfer | forward transfer | "
        "answer loss rise | KL(tuned ‖ base) | text loss rise | forgetting − reference | p (Holm) | blocks |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    differences = _differences(found)
    adjusted = holm({str(arm): paired_p(values) for arm, values in differences.items()})
    for arm in sorted(found, key=lambda arm: _mean(found[arm], "forgetting")):
        told = [
            _ranged(bootstrap([getattr(one, name) for one in found[arm].values()]))
            for name in ("learnt", "final", "forgetting", "share", "backward", "forward", "loss_rise", "kl", "text")
        ]
        gap = _ranged(bootstrap(differences[arm])) if arm in differences else ""
        p = f"{adjusted[str(arm)]:.3f}" if str(arm) in adjusted else ""
        rows.append(f"| {arm} | {' | '.join(told)} | {gap} | {p} | {len(found[arm])} |")
    pairs = min((len(values) for values in differences.values()), default=0)
    floor = [FLOOR, ""] if max((_mean(found[arm], "learnt") for arm in found), default=1.0) < LEAST else []
    return "\n".join([*floor, *rows, "", _limits(pairs), "", _of_kl(found)])


def equal_accuracy(found: Found) -> list[Arm]:
    """Arms whose skills are learnt nearly as well as the best arm's, by rising forgetting."""
    best = max(_mean(found[arm], "learnt") for arm in found)
    kept = [arm for arm in found if _mean(found[arm], "learnt") >= best - EQUAL]
    return sorted(kept, key=lambda arm: _mean(found[arm], "forgetting"))


def left_out(found: Found) -> dict[Arm, tuple[float, float]]:
    """Arm → (its forgetting, what a line in log KL, fitted to arms of other methods, says that it is).

    Only arms that are trained on without a remedy: a switch or a stack forgets by another mechanism.
    """
    plain = {arm: found[arm] for arm in found if arm.regime == "continue" and arm.remedy == "none"}
    told = {}
    for arm in plain:
        others = [other for other in plain if other.method != arm.method]
        points = [(_log_kl(plain[other]), _mean(plain[other], "forgetting")) for other in others]
        if len({x for x, _ in points}) >= 2:
            slope, start = _line(points)
            told[arm] = (_mean(plain[arm], "forgetting"), start + slope * _log_kl(plain[arm]))
    return told


def predictions(found: Found) -> tuple[float, float]:
    """Mean absolute error of `left_out`, and that of saying the mean of the others; NaN where there are too few."""
    told = left_out(found)
    if len(told) < 3:
        return math.nan, math.nan
    by_line, by_mean = [], []
    for arm, (seen, said) in told.items():
        others = [told[other][0] for other in told if other != arm]
        by_line.append(abs(seen - said))
        by_mean.append(abs(seen - sum(others) / len(others)))
    return sum(by_line) / len(by_line), sum(by_mean) / len(by_mean)


def _of_kl(found: Found) -> str:
    plain = [arm for arm in found if arm.regime == "continue" and arm.remedy == "none"]
    kl, forgotten = [_mean(found[arm], "kl") for arm in plain], [_mean(found[arm], "forgetting") for arm in plain]
    learnt = [_mean(found[arm], "learnt") for arm in plain]
    by_line, by_mean = predictions(found)
    return (
        f"Over the {len(plain)} arms trained on without a remedy, the rank correlation of forgetting with KL is "
        f"{_shown(spearman(kl, forgotten))}, with how well skills were learnt {_shown(spearman(learnt, forgotten))}. "
        f"A line in log KL, fitted without a method, misses its forgetting by {_shown(by_line)} on average; the mean "
        f"of the other methods misses it by {_shown(by_mean)}. "
        f"At equal accuracy (learnt within {EQUAL} of the best): {'; '.join(map(str, equal_accuracy(found)))}."
    )


def _limits(pairs: int) -> str:
    told = (
        "In brackets: 95 % bootstrap intervals of the mean over blocks (order × seed); one block has none. "
        f"Differences are to `{REFERENCE}`, paired by block; p by sign flips, two-sided, Holm over all arms. "
    )
    if pairs < 2:
        return f"{told}With fewer than two pairs nothing can be tested."
    return (
        f"{told}With {pairs} pairs p is at least {_shown(2.0 ** (1 - pairs))} before Holm, and a paired t test at "
        f"α .05 would find with power .8 differences of {seen_effect(pairs):.2f} standard deviations: smaller ones "
        "cannot be seen here."
    )


def _differences(found: Found) -> dict[Arm, list[float]]:
    reference = found.get(REFERENCE, {})
    told = {}
    for arm, blocks in found.items():
        common = [block for block in blocks if block in reference]
        if arm != REFERENCE and common:
            told[arm] = [blocks[block].forgetting - reference[block].forgetting for block in common]
    return told


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    x, y = (sum(side) / len(points) for side in zip(*points, strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope, y - slope * x


def _log_kl(blocks: Mapping[Block, Scores]) -> float:
    return math.log(max(_mean(blocks, "kl"), 1e-9))


def _mean(blocks: Mapping[Block, Scores], name: str) -> float:
    values = [getattr(one, name) for one in blocks.values()]
    return float(sum(values) / len(values))


def _ranged(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"
