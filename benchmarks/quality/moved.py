"""What tells how far a method moves general text: KL on the skill's questions, accuracy, or parameters trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.study.predict import errors, left_out
from benchmarks.study.statistics import spearman

from .report import Line

__all__ = ["PREDICTORS", "moved"]

PREDICTORS: dict[str, Callable[[Line], float]] = {
    "KL": lambda line: math.log(max(line.kl, 1e-9)),
    "accuracy": lambda line: line.accuracy[0],
    "parameters": lambda line: math.log(line.parameters),
}
"""Name → what a line is fitted in; KL and parameters by their logarithms."""
LEAST = 5
"""Methods below which nothing is told."""


def moved(made: Sequence[Line]) -> str:
    """A row for each predictor of the rise in loss on general text; empty of few methods."""
    if len(made) < LEAST:
        return ""
    rise = [line.text[0] for line in made]
    rows = ["| by | rank correlation | line misses by | mean misses by |", "| --- | --: | --: | --: |"]
    for name, at in PREDICTORS.items():
        points = {line.method: (at(line), line.text[0]) for line in made}
        told = [spearman([at(line) for line in made], rise), *errors(left_out(points, lambda method: method))]
        rows.append(f"| {name} | {' | '.join(map(_shown, told))} |")
    return "\n".join(
        [
            f"Over the {len(made)} methods: rank correlation of the rise in loss on general text with each; and how "
            "far a line in it (KL and parameters by their logarithms), fitted without a method, misses that method, "
            "in nats, against how far the mean of the other methods does.",
            "",
            *rows,
        ]
    )


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"
