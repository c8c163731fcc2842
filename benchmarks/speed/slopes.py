"""How fast a cost grows: the exponent of a power law, by least squares of logarithms, with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Slope", "slope"]

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, of 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Slope:
    """cost ∝ sizeᵉ: `exponent` e, and the interval that holds it in 95 of 100 cases if a power law is the truth."""

    exponent: float
    low: float
    high: float
    points: int


def slope(sizes: Sequence[float], costs: Sequence[float]) -> Slope | None:
    """Of positive values; None of fewer than three, which have no interval. ValueError for more than twelve."""
    if len(sizes) < 3:
        return None
    if len(sizes) - 2 > len(QUANTILES):
        raise ValueError(f"{len(sizes)} points: at most {len(QUANTILES) + 2}")
    across, up = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    exponent, start = statistics.linear_regression(across, up)
    off = sum((y - exponent * x - start) ** 2 for x, y in zip(across, up, strict=True))
    middle, free = statistics.fmean(across), len(sizes) - 2
    half = QUANTILES[free - 1] * math.sqrt(off / free / sum((x - middle) ** 2 for x in across))
    return Slope(exponent, exponent - half, exponent + half, len(sizes))
