"""How fast a cost grows: the exponent of a power law, by least squares of logarithms, with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Slope", "slope"]

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, of 1 to 10 degrees of freedom."""


NORMAL = 1.96


@dataclass(frozen=True)
class Slope:
    """cost ∝ sizeᵉ: `exponent` e, and the interval that holds it in 95 of 100 cases if a power law is the truth."""

    exponent: float
    low: float
    high: float
    points: int


def slope(sizes: Sequence[float], costs: Sequence[float], errors: Sequence[float]) -> Slope | None:
    """Of positive values, `errors` the standard errors of the costs; None of fewer than three, which have no interval.

    Logarithms of costs are weighted by (cost / error)². The interval is the wider of two: Student's t from how far
    the points are off the line, which bends of the curve widen, and the normal one from their errors alone.
    ValueError for more than twelve.
    """
    if len(sizes) < 3:
        return None
    free = len(sizes) - 2
    if free > len(QUANTILES):
        raise ValueError(f"{len(sizes)} points: at most {len(QUANTILES) + 2}")
    across, up = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    # an error of nothing would be a weight without end
    weights = [1 / max(error / cost, 1e-6) ** 2 for cost, error in zip(costs, errors, strict=True)]
    x, y = statistics.fmean(across, weights), statistics.fmean(up, weights)
    spread = sum(w * (a - x) ** 2 for w, a in zip(weights, across, strict=True))
    exponent = sum(w * (a - x) * (u - y) for w, a, u in zip(weights, across, up, strict=True)) / spread
    off = sum(w * (u - y - exponent * (a - x)) ** 2 for w, a, u in zip(weights, across, up, strict=True))
    half = max(QUANTILES[free - 1] * math.sqrt(off / free / spread), NORMAL / math.sqrt(spread))
    return Slope(exponent, exponent - half, exponent + half, len(sizes))
