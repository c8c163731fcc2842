"""All attention heads of a layer at once: each scaled and shifted, and open or closed by gates that are learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import count, flag, number

from .auxiliary import PenaltyWeight
from .base import Init, Intervention
from .registry import register_intervention

__all__ = ["GATES", "Heads", "opening", "probability_open"]

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 0.33
"""The stretch (γ, ζ) and the temperature β of the hard concrete distribution, as in JoLA's code."""
EDGE = 1e-6
"""Noise is drawn from it to 1 less it."""
GATES = ("scale_gate", "shift_gate")


def opening(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    """A hard concrete gate in [0, 1] (arXiv 1712.01312, equations 10, 11 and 13): min(max(s (ζ − γ) + γ, 0), 1).

    Args:
        log_alpha: log α of each gate.
        noise: u in (0, 1) of each: s = σ((log u − log(1 − u) + log α)/β). Without it s = σ(log α).
    """
    drawn = log_alpha if noise is None else (noise.log() - (-noise).log1p() + log_alpha) / TEMPERATURE
    return (torch.sigmoid(drawn) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def probability_open(log_alpha: Tensor) -> Tensor:
    """The probability that a gate is not 0 (arXiv 1712.01312, equation 12): σ(log α − β log(−γ/ζ))."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


@register_intervention("heads", version=1)
class Heads(PenaltyWeight, Intervention):
    """z′ = (1 + g₂ A) ⊙ z + g₁ v for every head z (JoLA, arXiv 2502.01179; LoFiT, 2406.01563, where the gates are 1).

    Made for `component="heads"`, all heads of a layer side by side; at another component its parts are equal slices.
    Options: `heads`, their number, which a base must have; `gates` (False), whether each head has two hard concrete
    gates, drawn once for a training forward (as `distribution` draws) and σ(log α) stretched and clipped afterwards;
    `penalty` (0.001), the weight of the mean probability that a gate is open, of both kinds, in the loss;
    `sparsity` (0), the weight of Σ|A| there, by which LoFiT's first stage finds heads. `peft_reft.select_heads` makes
    the second stage's config from the largest ‖A‖, `peft_reft.drop_closed_heads` an adapter of the open heads alone,
    `peft_reft.PenaltySchedule` changes the penalty's weight over a run. It has no rank: `r` is not used. The start is
    A = 0, v = 0, the identity, with gates half open. Parameters: `scale` A, `shift` v `[hidden]`; with gates
    `scale_gate` log α₂, `shift_gate` log α₁ `[heads]`.

    Source: of the papers the abstracts could be read here; the formula is the issue's and that of both papers' code
    (github.com/wenlai-lavine/jola, github.com/fc2869/lo-fit), the gates are those of arXiv 1712.01312.
    """

    scale: Tensor
    shift: Tensor
    scale_gate: Tensor
    shift_gate: Tensor
    tensors = {"scale": ("hidden",), "shift": ("hidden",), "scale_gate": ("heads",), "shift_gate": ("heads",)}
    option_table = {"heads": count(1), "gates": flag(False), "penalty": number(1e-3), "sparsity": number(0.0)}
    optional = dict.fromkeys(GATES, "gates")

    @property
    def samples(self) -> bool:  # type: ignore[override]  # of a unit with gates alone
        """Whether gates are drawn in training."""
        return bool(self.options["gates"])

    @property
    def unweighted(self) -> bool:
        """Whether neither gates nor scales are penalised."""
        return self.options["sparsity"] == 0 and (not self.options["gates"] or self.penalty_weight == 0)

    def start(self, init_weights: Init) -> None:
        """Refuse a width that the heads do not share evenly, and set the parameters."""
        if self.hidden_size % self.options["heads"]:
            raise ConfigError(
                f"options={{'heads': {self.options['heads']}}} at a site of width {self.hidden_size}",
                value=self.options["heads"],
                rule="the heads are equal slices of it",
                fix="give the number of attention heads of the layer",
            )
        super().start(init_weights)

    def identity(self) -> None:
        """A = 0, v = 0; log α = 0."""
        for tensor in self.named_tensors().values():
            torch.nn.init.zeros_(tensor)

    def paper_start(self) -> None:
        """The published start is the identity."""
        self.identity()

    def gate(self, name: str, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One kind of gates `[heads]`, drawn in training; 1 where there are none."""
        if not self.options["gates"]:
            return like.new_ones(self.options["heads"])
        log_alpha = self.parameter(name, like)
        if not self.training:
            return opening(log_alpha)
        uniform = torch.rand(log_alpha.shape, generator=generator, device=like.device, dtype=like.dtype)
        return opening(log_alpha, EDGE + (1 - 2 * EDGE) * uniform)

    def edit_delta(self, hidden: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """g₂ A ⊙ z + g₁ v."""
        scale, shift = (
            (self.gate(gate, hidden, generator)[:, None] * self.by_head(self.parameter(name, hidden))).flatten()
            for gate, name in zip(GATES, ("scale", "shift"), strict=True)
        )
        edited: Tensor = hidden * scale + shift
        return edited

    def by_head(self, values: Tensor) -> Tensor:
        """`[hidden]` as `[heads, size]`."""
        return values.reshape(self.options["heads"], -1)

    def penalty(self) -> Tensor:
        """The weighted mean probability of open gates, and the weighted Σ|A|."""
        found: Tensor = self.options["sparsity"] * self.scale.abs().sum()
        if self.options["gates"]:
            found = found + self.penalty_weight * sum(probability_open(getattr(self, g)).mean() for g in GATES)
        return found
