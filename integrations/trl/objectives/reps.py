"""RePS: steered, the answer with the concept is preferred; suppressed, the answer without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, shown

from .objective import Answers, Draw, Objective, Pass, check_pairs, checked_factors

__all__ = ["SUPPRESSIONS", "RepsObjective", "reps_loss"]

SUPPRESSIONS = ("negated", "nulled")


def reps_loss(
    wanted: Tensor,
    unwanted: Tensor,
    *,
    wanted_tokens: Tensor,
    unwanted_tokens: Tensor,
    wanted_before: Tensor,
    unwanted_before: Tensor,
) -> Tensor:
    """−log σ(Δ), Δ = β/|w| · log pΦ(w|x) − 1/|u| · log pΦ(u|x), β = max(log p(u|x) − log p(w|x), 1).

    One direction of RePS (arXiv 2505.20809). Steered, w is the answer with the concept and u the one without;
    suppressed, the other way round. p is the model without the edit Φ: the less likely w is there, the more it counts.

    Args:
        wanted: log pΦ(w|x) `[pairs]`, in nats, summed over the answer's tokens.
        unwanted: log pΦ(u|x).
        wanted_tokens: |w|.
        unwanted_tokens: |u|.
        wanted_before: log p(w|x).
        unwanted_before: log p(u|x).

    Returns:
        `[pairs]`.

    Raises:
        ConfigError: one of the six is no tensor, or has another shape than the others.
    """
    check_pairs(
        wanted=wanted,
        unwanted=unwanted,
        wanted_tokens=wanted_tokens,
        unwanted_tokens=unwanted_tokens,
        wanted_before=wanted_before,
        unwanted_before=unwanted_before,
    )
    scale = (unwanted_before - wanted_before).clamp_min(1.0)
    return -F.logsigmoid(scale * wanted / wanted_tokens - unwanted / unwanted_tokens)


@dataclass(frozen=True, kw_only=True)
class RepsObjective(Objective):
    """RePS (arXiv 2505.20809) for `use_objective`: −log σ(Δ⁺) − log σ(Δ⁻), mean over pairs.

    `chosen` is the answer with the concept, y_c, `rejected` the one without, y:

    - Δ⁺ = β⁺/|y_c| · log pΦ(y_c|x; α⁺) − 1/|y| · log pΦ(y|x; α⁺), β⁺ = max(log p(y|x) − log p(y_c|x), 1);
    - Δ⁻, with y and y_c exchanged, under the suppressed edit.

    p is the model with its adapters off. Known from a summary of the paper and from the authors' code (stanfordnlp's
    axbench, of which copies could be read); of the paper itself only its opening. Where the two disagree this follows
    the equations: |y| counts an answer's tokens (the code counts the prompt's too), α⁺ is the same for both answers
    (the code draws one for each row; here it is drawn for a step), and the two directions are added (the code takes
    their mean). The code's vector also learns a number that is added to the factor; `bias` has none.

    Attributes:
        factors: α⁺, all above 0, of which one is drawn for each step. The authors' code has 2, 4, … 20 for a vector;
            a reimplementation (zjunlp/EasyEdit) 0.2, 0.4, … 2 for LoRA.
        suppression: `"negated"`: the edit at −α, α drawn anew, for any kind. `"nulled"`: h − max(h·v, 0)/‖v‖² v, the
            direction taken out of h, for the kind `bias`. The code nulls vectors, and negates what has no single
            direction.

    Raises:
        ConfigError: factors that are none, or a suppression of another name.
    """

    factors: tuple[float, ...]
    suppression: Literal["negated", "nulled"] = "negated"

    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", checked_factors(self.factors))
        if self.suppression not in SUPPRESSIONS:
            raise ConfigError(
                f"suppression={shown(self.suppression)}",
                value=self.suppression,
                rule=f"it is one of {', '.join(map(repr, SUPPRESSIONS))}",
            )

    @property
    def drawn_from(self) -> tuple[float, ...]:
        """The factors."""
        return self.factors

    def passes(self, draw: Draw) -> list[Pass]:
        """Steered, then suppressed."""
        steered = Pass(draw())
        if self.suppression == "nulled":
            return [steered, Pass(1.0, nulled=True, swapped=True)]
        return [steered, Pass(-draw(), swapped=True)]

    def loss(self, wanted: Answers, unwanted: Answers, before: tuple[Answers, Answers] | None) -> Tensor:
        """See `reps_loss`."""
        if before is None:
            raise TypeError("RePS asks how likely the answers are without the edit")
        return reps_loss(
            wanted.total,
            unwanted.total,
            wanted_tokens=wanted.tokens,
            unwanted_tokens=unwanted.tokens,
            wanted_before=before[0].total,
            unwanted_before=before[1].total,
        )
