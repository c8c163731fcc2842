"""The arithmetic: ratios to the floors around a measurement, their spread, and whether one result is worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["LOUD", "SMALLEST_NOISE", "Pair", "Summary", "Verdict", "summarise", "verdict", "wander"]

Verdict = Literal["same", "better", "worse", "unclear"]

SMALLEST_NOISE = 0.01
"""Ratios nearer than this are not told apart, however quiet the rounds: a process made anew differs by it."""
LOUD = 0.06
"""Where both results' noise together is above this, a difference within it says nothing."""


@dataclass(frozen=True)
class Pair:
    """One round: seconds of the floor, of the method, and of the floor again."""

    before: float
    taken: float
    after: float

    @property
    def own(self) -> float:
        """Seconds beyond the mean of the floors around it."""
        return self.taken - (self.before + self.after) / 2

    @property
    def ratio(self) -> float:
        """The method's seconds over the mean of the floors around it: a drift that is even leaves it alone."""
        return self.taken / ((self.before + self.after) / 2)


@dataclass(frozen=True)
class Summary:
    """Of all rounds: the median ratio, the lowest and the highest, and how far such a median wanders.

    `noise` is three standard errors of the median, 3 · 1.2533 · s / √rounds (s the rounds' standard deviation; the
    factor of a median of normal values is √(π/2)), at least `SMALLEST_NOISE`; None below three rounds, which have no
    spread to speak of. `floor_noise` is the median distance of a round's two floors from each other, as a share.
    """

    rounds: int
    median: float
    low: float
    high: float
    noise: float | None
    floor_noise: float
    floor_seconds: float


def summarise(pairs: Sequence[Pair]) -> Summary:
    """Of at least one round; ValueError for none."""
    if not pairs:
        raise ValueError("no rounds to summarise: at least one is needed; measure first")
    ratios = [pair.ratio for pair in pairs]
    noise = wander(ratios)
    return Summary(
        rounds=len(ratios),
        median=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        noise=None if noise is None else max(SMALLEST_NOISE, noise),
        floor_noise=statistics.median(abs(pair.after / pair.before - 1) for pair in pairs),
        floor_seconds=statistics.median(floor for pair in pairs for floor in (pair.before, pair.after)),
    )


def wander(values: Sequence[float]) -> float | None:
    """Three standard errors of the median of `values`; None below three."""
    if len(values) < 3:
        return None
    return 3 * math.sqrt(math.pi / 2) * statistics.stdev(values) / math.sqrt(len(values))


def verdict(old: Summary, new: Summary) -> Verdict:
    """`new` beside `old`: worse or better where the medians are farther apart than both noises together.

    Independent errors add as squares. `unclear`: no such difference, and noise so loud that one could hide in it.
    """
    if old.noise is None or new.noise is None:
        raise ValueError(f"{min(old.rounds, new.rounds)} rounds have no spread: compare results of 3 rounds at least")
    limit = math.hypot(old.noise, new.noise)
    if abs(new.median - old.median) > limit:
        return "worse" if new.median > old.median else "better"
    return "unclear" if limit > LOUD else "same"
