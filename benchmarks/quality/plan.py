"""Which runs the study of quality is made of: a search over learning rates on validation data, then the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.runs import Settings

__all__ = ["Grid", "figures_plan"]


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


def figures_plan(grid: Grid, rates: Mapping[str, float]) -> list[Settings]:
    """One run for each seed, skill and method whose rate is known; a block of all methods after the other."""
    return [
        {**grid.common(), "study": "quality", "method": method, "skill": skill, "rate": rates[method], "seed": seed}
        for seed in grid.seeds
        for skill in grid.skills
        for method in grid.methods
        if method in rates
    ]
