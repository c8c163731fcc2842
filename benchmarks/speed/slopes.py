"""How fast a cost grows: the exponent of a power law, by least squares, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Slope", "slope"]

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, of 1 to 10 degrees of freedom."""


NORMAL = 1.96
TRIED = [number / 200 for number in range(-400, 801)]
"""Exponents, from -2 to 4."""


@dataclass(frozen=True)
class Slope:
    """cost ∝ sizeᵉ: `exponent` e, and the interval that holds it in 95 of 100 cases if a power law is the truth."""

    exponent: float
    low: float
    high: float
    points: int


def slope(sizes: Sequence[float], costs: Sequence[float], errors: Sequence[float]) -> Slope | None:
    """Of positive sizes and `errors`, the standard errors of the costs; a cost below zero is as good as another.

    The c and e that make Σ ((cost − c sizeᵉ) / error)² least; logarithms would have to leave out the costs that noise
    puts below zero, and would find slopes in noise. The interval holds the exponents with which that sum is not more
    than t² above its least: t is Student's, times the sum's root mean square, which bends of the curve widen, or the
    normal 1.96 where that is more. None of fewer than three sizes, and where the costs do not say which exponent: all
    below zero, or an interval beyond those tried. ValueError for more than twelve.
    """
    free = len(sizes) - 2
    if free < 1:
        return None
    if free > len(QUANTILES):
        raise ValueError(f"{len(sizes)} points: at most {len(QUANTILES) + 2}")
    sums = {exponent: _off(exponent, sizes, costs, errors) for exponent in TRIED}
    best = min(sums, key=sums.__getitem__)
    more = max(QUANTILES[free - 1] ** 2 * sums[best] / free, NORMAL**2)
    held = [exponent for exponent, off in sums.items() if off <= sums[best] + more]
    if held[0] == TRIED[0] or held[-1] == TRIED[-1]:
        return None
    return Slope(best, held[0], held[-1], len(sizes))


def _off(exponent: float, sizes: Sequence[float], costs: Sequence[float], errors: Sequence[float]) -> float:
    """The sum with the best c, at least 0, for one exponent."""
    curve = [size**exponent / error for size, error in zip(sizes, errors, strict=True)]
    seen = [cost / error for cost, error in zip(costs, errors, strict=True)]
    factor = max(0.0, sum(x * y for x, y in zip(curve, seen, strict=True)) / sum(x * x for x in curve))
    return sum((y - factor * x) ** 2 for x, y in zip(curve, seen, strict=True))
