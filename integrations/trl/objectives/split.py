"""SPLIT: both answers stay likely, and a gap between them is kept open."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, shown

from .objective import Answers, Draw, Objective, Pass, check_pairs, checked_factors, checked_weight

__all__ = ["SplitObjective", "split_loss"]


def split_loss(
    positive: Tensor,
    negative: Tensor,
    *,
    positive_weight: float,
    negative_weight: float,
    gap_weight: float,
    gap: float,
) -> Tensor:
    """λₚ Lₚ + λₙ Lₙ + γ max(θ − (Lₙ − Lₚ), 0): the first two keep utility, the third makes the preference.

    SPLIT (arXiv 2602.02343).

    Args:
        positive: Lₚ `[pairs]`, the mean negative log-likelihood per token of the wanted answer, in nats.
        negative: Lₙ, of the unwanted one.
        positive_weight: λₚ.
        negative_weight: λₙ.
        gap_weight: γ.
        gap: θ, in nats per token.

    Returns:
        `[pairs]`.

    Raises:
        ConfigError: the two are no tensors of one shape, or a weight is no finite number from 0 on.
    """
    check_pairs(positive=positive, negative=negative)
    weights = {"positive_weight": positive_weight, "negative_weight": negative_weight, "gap_weight": gap_weight}
    for name, value in {**weights, "gap": gap}.items():
        checked_weight(name, value)
    short = (gap - (negative - positive)).relu()
    return positive_weight * positive + negative_weight * negative + gap_weight * short


@dataclass(frozen=True, kw_only=True)
class SplitObjective(Objective):
    """SPLIT (arXiv 2602.02343) for `use_objective`: λₚ Lₚ + λₙ Lₙ + γ max(θ − (Lₙ − Lₚ), 0), mean over pairs.

    `chosen` is the answer that shows the concept. L is the mean over an answer's tokens, and the hinge is taken of
    each pair, so that accumulated batches give what one large batch gives; the authors' code (zjunlp/EasyEdit,
    revision 14cea824) takes both of a batch's means, which is the same with one pair a batch. It has the weights
    λₚ = 1, λₙ 0.3 to 0.6, γ 3.5 to 8 and θ 0.3 to 0.6 for its models and data sets, factors 2 to 20 for a vector and
    0.2 to 2 for LoRA, drawn for each row; here one is drawn for a step. The equation is known from a summary of the
    paper and from that code; of the paper itself only its opening could be read.

    Attributes:
        positive_weight: λₚ, of the wanted answer's L.
        negative_weight: λₙ, of the unwanted answer's L. It keeps that answer likely.
        gap_weight: γ.
        gap: θ, the least Lₙ − Lₚ, in nats per token.
        factors: of the edit, all above 0, of which one is drawn for each step; None: the edit acts as it stands.
        opposite: at minus another factor the rejected answer is the wanted one; the loss is the mean of both
            directions. As in the authors' code, for an adapter that is to be used with either sign.

    Raises:
        ConfigError: a weight below 0, all three of them 0, factors that are none, or `opposite` without factors.
    """

    positive_weight: float = 1.0
    negative_weight: float = 0.5
    gap_weight: float = 5.0
    gap: float = 0.5
    factors: tuple[float, ...] | None = None
    opposite: bool = False

    def __post_init__(self) -> None:
        for name in ("positive_weight", "negative_weight", "gap_weight", "gap"):
            checked_weight(name, getattr(self, name))
        if not (self.positive_weight or self.negative_weight or self.gap_weight):
            raise ConfigError(
                "positive_weight, negative_weight and gap_weight are all 0",
                value=0,
                rule="a loss of which nothing counts trains nothing",
                fix="set one of them above 0",
            )
        if not isinstance(self.opposite, bool):
            raise ConfigError(f"opposite={shown(self.opposite)}", value=self.opposite, rule="it is True or False")
        if self.factors is not None:
            object.__setattr__(self, "factors", checked_factors(self.factors))
        elif self.opposite:
            raise ConfigError(
                "opposite=True without factors",
                value=self.opposite,
                rule="the other direction is the edit at minus one of the factors",
                fix="give factors, e.g. factors=(1.0,)",
            )

    @property
    def drawn_from(self) -> tuple[float, ...]:
        """The factors, or none."""
        return self.factors or ()

    def passes(self, draw: Draw) -> list[Pass]:
        """One, or one for each direction."""
        if not self.drawn_from:
            return [Pass()]
        forth = Pass(draw())
        return [forth, Pass(-draw(), swapped=True)] if self.opposite else [forth]

    def loss(self, wanted: Answers, unwanted: Answers, before: tuple[Answers, Answers] | None) -> Tensor:
        """See `split_loss`; with two directions half of it."""
        whole = split_loss(
            -wanted.mean,
            -unwanted.mean,
            positive_weight=self.positive_weight,
            negative_weight=self.negative_weight,
            gap_weight=self.gap_weight,
            gap=self.gap,
        )
        return whole / 2 if self.opposite else whole
