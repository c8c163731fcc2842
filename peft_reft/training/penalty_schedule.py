"""How the weight of a penalty changes while a stock trainer runs."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import PenaltyWeight

__all__ = ["PenaltySchedule"]

Shape = Literal["linear", "cyclic", "exponential"]


class PenaltySchedule(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Sets the weight of every penalty of a model before each step: `Trainer(callbacks=[PenaltySchedule(...)])`.

    With t from 0 at the first step to 1 at the last, the weight is `start` + (`end` − `start`) t (linear),
    `end` + (`start` − `end`) (1 + cos 2π cycles t)/2 (cyclic), or `start` (`end`/`start`)ᵗ (exponential). JoLA
    (arXiv 2502.01179) compares schedules of these three shapes and prefers the last.

    Args:
        shape: one of them.
        start: the weight at the first step.
        end: at the last.
        cycles: how often a cyclic one comes back to `start`.

    Raises:
        ConfigError: another shape, a weight that is negative, or 0 where it is exponential.
    """

    def __init__(self, shape: Shape, *, start: float, end: float, cycles: int = 4) -> None:
        super().__init__()
        if shape not in get_args(Shape):
            raise ConfigError(f"shape={shape!r}", value=shape, rule=f"it is one of {', '.join(get_args(Shape))}")
        lowest = 0.0 if shape != "exponential" else math.ulp(0.0)
        for name, value in (("start", start), ("end", end)):
            if not lowest <= value < float("inf"):
                raise ConfigError(
                    f"{name}={value!r} with shape={shape!r}",
                    value=value,
                    rule="a weight is finite and not negative, and above 0 where it is exponential",
                )
        self.shape: Shape = shape
        self.start: float = start
        self.end: float = end
        self.cycles: int = cycles

    def weight(self, progress: float) -> float:
        """The weight at a part of the run.

        Args:
            progress: from 0 at the first step to 1 at the last.

        Returns:
            The weight.
        """
        if self.shape == "linear":
            return self.start + (self.end - self.start) * progress
        if self.shape == "cyclic":
            return self.end + (self.start - self.end) * (1 + math.cos(2 * math.pi * self.cycles * progress)) / 2
        return float(self.start * (self.end / self.start) ** progress)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer."""
        model: nn.Module = kwargs["model"]
        weight = self.weight(state.global_step / max(state.max_steps - 1, 1))
        for module in model.modules():
            if isinstance(module, PenaltyWeight):
                module.penalty_weight = weight
