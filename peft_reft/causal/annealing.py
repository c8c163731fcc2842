"""Learned boundaries under `transformers.Trainer`: the callback that lets their temperature fall."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .search import AlignmentSearch

__all__ = ["AnnealBoundaries"]


class AnnealBoundaries(TrainerCallback):  # type: ignore[misc]
    """`AlignmentSearch.anneal` before every step, as `fit` does it.

    Args:
        search: what is trained.
        temperatures: see `AlignmentSearch.anneal`.
    """

    def __init__(self, search: AlignmentSearch, temperatures: tuple[float, float] | None = None) -> None:
        self.search = search
        self.temperatures = temperatures

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before each step."""
        self.search.anneal(state.global_step / max(state.max_steps - 1, 1), self.temperatures)
