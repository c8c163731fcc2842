"""The search of learning rates: equal grids for all methods, widened where the best lies at an edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.jobs import do_missing
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import Settings, read, results_of

from .plan import Grid
from .run import run

__all__ = ["WIDER", "best_rates", "rates_of", "rounded", "search", "search_plan"]

SEED = 1000
"""None of the figures' seeds."""
WIDER = 2
"""Rates that a grid gains at most, one at a time, beyond the edge where the best lies."""
Score = tuple[float, float]
"""(mean validation accuracy, minus mean validation loss)."""


def search(grid: Grid, file: Path, *, jobs: int = 1, minutes: float | None = None) -> dict[str, float]:
    """Do what is missing of the search, and tell the rates that it chose; see `best_rates`."""
    while True:
        wanted = search_plan(grid, read(file).values())
        left = do_missing(file, wanted, run, jobs=jobs, minutes=minutes)
        known = list(read(file).values())
        if left or len(search_plan(grid, known)) == len(wanted):
            return best_rates(grid, known)


def search_plan(grid: Grid, runs: Iterable[Mapping[str, Any]]) -> list[Settings]:
    """One run for each method, learning rate and skill of the search, so far as `runs` can tell which are wanted."""
    known = list(runs)
    return [
        {**grid.common(), "study": "search", "method": method, "skill": skill, "rate": rate, "seed": SEED}
        for method in grid.methods
        for rate in rates_of(grid, method, known)
        for skill in grid.search_skills
    ]


def rates_of(grid: Grid, method: str, runs: Iterable[Mapping[str, Any]]) -> list[float]:
    """A method's grid, rising: its own rates, and those beyond an edge where the best has been found to lie."""
    rates, found = sorted(METHODS[method].rates), _scores(grid, method, runs)
    for _ in range(WIDER):
        if not set(rates) <= set(found):
            break
        best = max(rates, key=lambda rate: found[rate])
        if best == rates[0]:
            rates = [rounded(rates[0] ** 2 / rates[1]), *rates]
        elif best == rates[-1]:
            rates = [*rates, rounded(rates[-1] ** 2 / rates[-2])]
        else:
            break
    return rates


def best_rates(grid: Grid, runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Method → the rate of the highest mean validation accuracy, of equal ones that of the lower validation loss.

    Methods whose search is not complete are left out.
    """
    known, chosen = list(runs), {}
    for method in grid.methods:
        rates, found = rates_of(grid, method, known), _scores(grid, method, known)
        if set(rates) <= set(found):
            chosen[method] = max(rates, key=lambda rate: found[rate])
    return chosen


def _scores(grid: Grid, method: str, runs: Iterable[Mapping[str, Any]]) -> dict[float, Score]:
    """Rate → score, of the rates at which every skill of the search has been learnt."""
    found: dict[float, dict[str, Mapping[str, Any]]] = {}
    for settings, result in results_of(runs, **grid.common(), study="search", method=method):
        if settings["skill"] in grid.search_skills:
            found.setdefault(settings["rate"], {})[settings["skill"]] = result
    count = len(grid.search_skills)
    return {
        rate: (
            sum(result["validation accuracy"] for result in held.values()) / count,
            -sum(result["validation loss"] for result in held.values()) / count,
        )
        for rate, held in found.items()
        if len(held) == count
    }


def rounded(rate: float) -> float:
    """A rate to two digits."""
    return float(f"{rate:.1e}")
