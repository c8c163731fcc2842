"""Intervals by the bootstrap, paired comparisons by exact sign flips, Holm's correction, and what a test can see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["bootstrap", "coverage", "holm", "paired_p", "seen_effect", "shown_p", "spearman"]

DRAWS = 4_000
EXACT_UP_TO = 16
"""Pairs of which all flips of signs are counted; of more a sample."""


def bootstrap(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the percentile interval of the mean over resampled values; of one value there is none (NaN)."""
    held = np.asarray(values, dtype=float)
    if not len(held):
        raise ValueError("no values")
    if len(held) == 1:
        return float(held[0]), math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = held[generator.integers(0, len(held), (DRAWS, len(held)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(held.mean()), float(low), float(high)


def coverage(count: int, *, level: float = 0.95) -> float:
    """How often `bootstrap`'s interval of so many values really holds the mean, were they normal.

    It is about mean ± z · s · √((n − 1)/n) / √n, where t for z, and s without the root, would be right: too narrow
    where values are few.
    """
    if count < 2:
        return math.nan
    z = _normal_quantile((1 + level) / 2)
    return 2 * _student_share(z * math.sqrt((count - 1) / count), count - 1) - 1


def paired_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that signs of paired differences are chance: Fisher's permutation test.

    With n pairs it is at least 2 / 2ⁿ, so that fewer than six can never say p < .05.
    """
    held = np.asarray(differences, dtype=float)
    if not len(held):
        raise ValueError("no pairs")
    if len(held) <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(held))))
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (20_000, len(held)))
        signs[0] = 1.0  # what was seen is one of the flips
    sums = np.abs(signs @ held)
    return float((sums >= abs(held.sum()) - 1e-12).mean())


def shown_p(p: float) -> str:
    """`0.031`; `< 0.001` where three digits would say that it is nothing."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Name → p adjusted for the number of comparisons (Holm 1979): step down, never below a smaller one's."""
    adjusted, highest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def seen_effect(pairs: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest standardised mean difference that a two-sided paired t test of so many pairs finds with this power.

    By the noncentral t distribution, approximated (Johnson & Welch 1940): T′ with ν degrees and noncentrality δ is
    above t where (t(1 − 1/4ν) − δ) / √(1 + t²/2ν), which is nearly normal, says so.
    """
    if pairs < 2:
        return math.inf
    degrees = pairs - 1
    critical = _student_quantile(1 - alpha / 2, degrees)
    deviation = math.sqrt(1 + critical**2 / (2 * degrees))
    return (critical * (1 - 1 / (4 * degrees)) + _normal_quantile(power) * deviation) / math.sqrt(pairs)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank. NaN where one side does not vary."""
    ranks = [_ranks(np.asarray(side, dtype=float)) for side in (one, other)]
    if any(np.ptp(side) == 0 for side in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)


def _student_share(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0: the density is summed up."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    # substitution t = √ν tan θ turns the integral into one of cos^(ν − 1) over a bounded range
    angle = np.linspace(0, math.atan(t / math.sqrt(degrees)), 4001)
    heights = np.cos(angle) ** (degrees - 1)
    return 0.5 + float(np.trapezoid(heights, angle)) * scale * math.sqrt(degrees)


def _student_quantile(share: float, degrees: int) -> float:
    """By bisection on the distribution."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < share else (low, middle)
    return (low + high) / 2
