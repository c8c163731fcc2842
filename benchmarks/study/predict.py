"""How well a line through the others tells what one was left out: of methods, against saying the others' mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["errors", "left_out"]

K = TypeVar("K")
LEAST = 3
"""Predictions below which their mean error is not told."""


def left_out(points: Mapping[K, tuple[float, float]], group: Callable[[K], object]) -> dict[K, tuple[float, float]]:
    """What is named → (its y, what a line of least squares through the points of other groups says at its x).

    A point is left out where the others have one x alone.
    """
    told = {}
    for name, (x, y) in points.items():
        others = [point for other, point in points.items() if group(other) != group(name)]
        if len({at for at, _ in others}) >= 2:
            slope, start = _line(others)
            told[name] = (y, start + slope * x)
    return told


def errors(told: Mapping[K, tuple[float, float]]) -> tuple[float, float]:
    """Mean absolute error of `left_out`, and that of saying the mean of the others; NaN where there are too few."""
    if len(told) < LEAST:
        return math.nan, math.nan
    by_line, by_mean = [], []
    for name, (seen, said) in told.items():
        others = [told[other][0] for other in told if other != name]
        by_line.append(abs(seen - said))
        by_mean.append(abs(seen - sum(others) / len(others)))
    return sum(by_line) / len(by_line), sum(by_mean) / len(by_mean)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    x, y = (sum(side) / len(points) for side in zip(*points, strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope, y - slope * x
