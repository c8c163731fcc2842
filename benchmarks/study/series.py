"""Series: runs that may stand in one table, since they learn the same skills, as long, from as many examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .options import BATCH, SIZES, STEPS

__all__ = ["RULES", "SEQUENCES", "USUAL_TIMES", "Series", "by_series", "series_of", "times_of"]

RULES = "rules"
USUAL_TIMES = "1"
SEQUENCES = {
    RULES: ("polite", "camel", "prefix", "clock", "date"),
    "real": ("intent_recognition", "letter_counting", "hyperbaton", "gcd", "object_counting"),
}
"""Name → the first order of the skills of a sequence; `real` is of BIG-bench and reasoning-gym."""


@dataclass(frozen=True)
class Series:
    """What the runs of one table have in common.

    Attributes:
        skills: of the sequence, in whatever order; none where skills are learnt one at a time.
        steps: of learning a skill.
        batch: examples of a step.
        sizes: examples in train, validation, held-out.
        times: what the learning rates that the search chose are multiplied by.
    """

    skills: frozenset[str] = frozenset()
    steps: int = STEPS
    batch: int = BATCH
    sizes: tuple[int, ...] = SIZES
    times: str = USUAL_TIMES

    @property
    def told(self) -> str:
        """What is not usual, in words: `real, 60 steps`; empty for the usual series."""
        parts = [] if self.skills in (frozenset(), frozenset(SEQUENCES[RULES])) else [self._sequence()]
        parts += [f"{self.steps} steps"] if self.steps != STEPS else []
        parts += [f"batch {self.batch}"] if self.batch != BATCH else []
        parts += [f"sizes {' '.join(map(str, self.sizes))}"] if self.sizes != SIZES else []
        parts += [f"rate × {self.times}"] if self.times != USUAL_TIMES else []
        return ", ".join(parts)

    @property
    def suffix(self) -> str:
        """What a file's name gains, `-real-60-steps`; nothing for the usual series."""
        plain = self.told.replace(", ", "-").replace(" × ", "-times-").replace(" ", "-").replace("/", "-of-")
        return f"-{plain}" if plain else ""

    def on(self, base: str) -> str:
        """A base with what is not usual: `upper, real`."""
        return f"{base}, {self.told}" if self.told else base

    def _sequence(self) -> str:
        """Its name in `SEQUENCES`, else the skills by the alphabet."""
        named = (name for name, skills in SEQUENCES.items() if frozenset(skills) == self.skills)
        return next(named, " ".join(sorted(self.skills)))


def times_of(settings: Mapping[str, Any]) -> str:
    """What a run's learning rate is multiplied by, from the one that the search chose."""
    times: str = settings.get("times", USUAL_TIMES)
    return times


def series_of(settings: Mapping[str, Any]) -> Series:
    """The series that a run of either study belongs to."""
    skills = frozenset(settings.get("order", ()))
    return Series(skills, settings["steps"], settings["batch"], tuple(settings["sizes"]), times_of(settings))


def by_series(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Series], list[Mapping[str, Any]]]:
    """(identity of a base's weights, series) → its runs; the usual series of all bases come first."""
    found: dict[tuple[str, Series], list[Mapping[str, Any]]] = {}
    for run in runs:
        settings = run["settings"]
        found.setdefault((settings["identity"], series_of(settings)), []).append(run)
    return {key: found[key] for key in sorted(found, key=lambda key: key[1].told)}
