"""What a sequence's run says: final accuracy, forgetting, transfer, and what moved it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.study.runs import results_of
from benchmarks.study.series import times_of

from .plan import Arm

__all__ = ["Block", "Scores", "scores", "scores_of"]

Block = tuple[tuple[str, ...], int]
"""An order of skills, and a seed: what arms are paired by."""


@dataclass(frozen=True)
class Scores:
    """Of one run; A[i][j] is the accuracy on skill j after skill i was learnt, B[j] the base's.

    Attributes:
        learnt: mean A[j][j]: how well skills were learnt.
        final: mean A[last][j].
        forgetting: mean over skills but the last of max over i of A[i][j], from when it was learnt, minus A[last][j]
            (Chaudhry et al. 2018).
        share: that forgetting as a share of what was known: the sum of the differences over the sum of the maxima, 0
            where nothing was; what was learnt less well has less to lose.
        backward: mean over skills but the last of A[last][j] − A[j][j] (Lopez-Paz & Ranzato 2017).
        forward: mean over skills but the first of A[j − 1][j] − B[j].
        loss_rise: mean over skills but the last of the rise in answer loss since the skill was learnt: it moves
            where accuracy is at its floor or ceiling.
        gain_kept: mean over the same of the share of what learning took off that loss which is still off it at the
            end: 1 for all, 0 for none, negative where the loss is above the base's.
        kl: mean over skills of KL(tuned ‖ base) on the skill's questions, just after it was learnt.
        text: rise in loss on general text at the end; NaN with a router, which sends no text anywhere.
        seconds: of learning, in all.
        parameters: that learn a skill.
    """

    learnt: float
    final: float
    forgetting: float
    share: float
    backward: float
    forward: float
    loss_rise: float
    gain_kept: float
    kl: float
    text: float
    seconds: float
    parameters: float


def scores_of(result: Mapping[str, Any]) -> Scores:
    """The scores of one run.

    Raises:
        ValueError: it has fewer than two skills.
    """
    accuracy, loss, count = result["accuracy"], result["loss"], len(result["accuracy"][0])
    if count < 2:
        raise ValueError("a sequence has two skills at least")
    last, former, later = accuracy[-1], range(count - 1), range(1, count)
    start = result["start"]["loss"]
    known = [max(row[j] for row in accuracy[j:]) for j in former]
    lost = [best - last[j] for j, best in zip(former, known, strict=True)]
    return Scores(
        learnt=_mean(accuracy[j][j] for j in range(count)),
        final=_mean(last),
        forgetting=_mean(lost),
        share=sum(lost) / sum(known) if sum(known) else 0.0,
        backward=_mean(last[j] - accuracy[j][j] for j in former),
        forward=_mean(accuracy[j - 1][j] - result["start"]["accuracy"][j] for j in later),
        loss_rise=_mean(loss[-1][j] - loss[j][j] for j in former),
        gain_kept=_mean(_kept(start[j], loss[j][j], loss[-1][j]) for j in former),
        kl=_mean(result["kl"]),
        text=result["text loss rise"][-1],
        seconds=sum(result["seconds"]),
        parameters=float(result["parameters"][0]),
    )


def _kept(start: float, learnt: float, last: float) -> float:
    return (start - last) / (start - learnt) if start > learnt else 0.0


def scores(runs: Iterable[Mapping[str, Any]]) -> dict[Arm, dict[Block, Scores]]:
    """Arm → block → scores, of the study's runs among these, which are of one base and one series.

    A switched run also makes the arms `routed` and `merged`, from the same adapters.
    """
    found: dict[Arm, dict[Block, Scores]] = {}
    for settings, result in results_of(list(runs), study="forgetting"):
        block = tuple(settings["order"]), settings["seed"]
        for regime, told in {settings["regime"]: result, **_combined(result)}.items():
            arm = Arm(settings["method"], regime, settings["remedy"], times_of(settings))
            found.setdefault(arm, {})[block] = scores_of(told)
    return found


def _combined(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a router and a sum make of one run's adapters, as runs: theirs is a row of answers after the last."""
    told: dict[str, Mapping[str, Any]] = {}
    for regime in ("routed", "merged"):
        if regime in result:
            one = result[regime]
            told[regime] = {
                **result,
                "accuracy": [*result["accuracy"], one["accuracy"]],
                "loss": [*result["loss"], one["loss"]],
                "text loss rise": [one.get("text loss rise", math.nan)],
            }
    return told


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)
