"""Which runs the study of quality is made of: a search over learning rates on validation data, then the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.methods import METHODS
from benchmarks.study.runs import Settings, results_of

__all__ = ["Grid", "best_rates", "figures_plan", "search_plan"]


@dataclass(frozen=True)
class Grid:
    """What is asked for.

    Attributes:
        base: of `benchmarks.study.base.BASES`, and its identity.
        identity: of the base's weights.
        methods: names.
        skills: names; figures are of all of them.
        search_skills: names; learning rates are chosen by the mean over these, on their validation sets.
        seeds: of the start and of the order of the data.
        steps: of learning a skill.
        batch: rows of a step.
        sizes: examples in train, validation, held-out.
    """

    base: str
    identity: str
    methods: Sequence[str]
    skills: Sequence[str]
    search_skills: Sequence[str]
    seeds: Sequence[int]
    steps: int = 300
    batch: int = 16
    sizes: tuple[int, int, int] = (512, 64, 96)

    def common(self) -> Settings:
        """What all its runs have in common."""
        return {
            "base": self.base,
            "identity": self.identity,
            "steps": self.steps,
            "batch": self.batch,
            "sizes": list(self.sizes),
        }


def search_plan(grid: Grid) -> list[Settings]:
    """One run for each method, learning rate and skill of the search; the seed is none of the figures'."""
    return [
        {**grid.common(), "study": "search", "method": method, "skill": skill, "rate": rate, "seed": 1000}
        for skill in grid.search_skills
        for method in grid.methods
        for rate in METHODS[method].rates
    ]


def best_rates(grid: Grid, runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Method → the rate of the highest mean validation accuracy, of equal ones that of the lower validation loss.

    Methods whose search is not complete are left out.
    """
    kept = list(runs)
    chosen = {}
    for method in grid.methods:
        scores = {}
        for rate in METHODS[method].rates:
            found = [
                result
                for settings, result in results_of(kept, **grid.common(), study="search", method=method, rate=rate)
                if settings["skill"] in grid.search_skills
            ]
            if len(found) == len(grid.search_skills):
                accuracy = sum(result["validation accuracy"] for result in found) / len(found)
                loss = sum(result["validation loss"] for result in found) / len(found)
                scores[rate] = (accuracy, -loss)
        if len(scores) == len(METHODS[method].rates):
            chosen[method] = max(scores, key=lambda rate: scores[rate])
    return chosen


def figures_plan(grid: Grid, rates: Mapping[str, float]) -> list[Settings]:
    """One run for each seed, skill and method whose rate is known; a block of all methods after the other."""
    return [
        {**grid.common(), "study": "quality", "method": method, "skill": skill, "rate": rates[method], "seed": seed}
        for seed in grid.seeds
        for skill in grid.skills
        for method in grid.methods
        if method in rates
    ]
