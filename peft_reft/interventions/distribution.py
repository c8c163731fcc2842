"""D-Intervention: the learned source is drawn from a distribution in training, and is its mean afterwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import number

from .auxiliary import PenaltyWeight
from .base import Intervention, activation
from .loreft import loreft_delta
from .registry import register_intervention
from .rotation import orthonormal_rows

__all__ = ["Distribution", "normal_divergence"]

LOWEST, HIGHEST = -20.0, 0.0
"""Bounds of log σ²: σ from 4.5e-5 to 1."""


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) summed over the last dimension: ½ Σ (μ² + σ² − 1 − log σ²).

    mean μ and log_variance log σ² `[..., rank]`; returns `[...]`.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


@register_intervention("distribution", version=1)
class Distribution(PenaltyWeight, Intervention):
    """h′ = h + Rᵀ(z − Rh), R Rᵀ = I, z ~ N(μ, σ²) in training, z = μ afterwards (D-Intervention, arXiv 2506.06686).

    μ = act(Wh + b) and log σ² = Sh + d, kept between −20 and 0: LoReFT that learns the surroundings of its point too.
    In evaluation it is LoReFT. Published for early blocks. The option `penalty` (0, as its authors' code has it) is
    the weight of KL(N(μ, σ²) ‖ N(0, 1)), summed over the rank and averaged over the edited tokens, in the loss; their
    other value is 0.1. Parameters: those of `loreft`, and of training alone `spread_weight` S `[rank, hidden]`,
    `spread_bias` d `[rank]`. The noise is drawn by a generator of its own, which is seeded anew in every training
    forward by one number of torch's; so a seed repeats a run, a trainer's checkpoint resumes it, and what is
    recomputed sees the same noise. In a compiled graph it is drawn as dropout is.

    Source: of the paper its abstract could be read here; formula, bounds and KL come from its authors' code
    (github.com/chili-lab/D-Intervention, `VIBreftIntervention`, whose bounds of σ differ from class to class).
    """

    rotation: Tensor
    weight: Tensor
    bias: Tensor
    spread_weight: Tensor
    spread_bias: Tensor
    pads = True
    tensors = {
        "rotation": ("rank", "hidden"),
        "weight": ("rank", "hidden"),
        "bias": ("rank",),
        "spread_weight": ("rank", "hidden"),
        "spread_bias": ("rank",),
    }
    orthonormal = frozenset({"rotation"})
    option_table = {"penalty": number(0.0)}
    activates = True
    samples = True

    def identity(self) -> None:
        """W = R, b = 0: the identity in evaluation; in training h and noise of σ² = 1/hidden."""
        self.paper_start()
        self.weight.copy_(orthonormal_rows(self.raw_rotation()))
        for held in (self.bias, self.spread_weight):
            torch.nn.init.zeros_(held)
        torch.nn.init.constant_(self.spread_bias, -math.log(self.hidden_size))

    def _mean(self, hidden: Tensor) -> Tensor:
        return activation(self.act_fn, hidden @ self.parameter("weight", hidden).mT + self.parameter("bias", hidden))

    def _log_variance(self, hidden: Tensor) -> Tensor:
        weight, bias = self.parameter("spread_weight", hidden), self.parameter("spread_bias", hidden)
        return (hidden @ weight.mT + bias).clamp(LOWEST, HIGHEST)

    def edit_delta(self, hidden: Tensor, rotation: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """`loreft_delta`, and in training Rᵀ(σ ⊙ ε), ε ~ N(0, 1)."""
        weight, bias = self.parameter("weight", hidden), self.parameter("bias", hidden)
        delta = loreft_delta(hidden, rotation, weight, bias, self.act_fn)
        if not self.training:
            return delta
        deviation = (0.5 * self._log_variance(hidden)).exp()
        noise = torch.randn(deviation.shape, generator=generator, device=hidden.device, dtype=hidden.dtype)
        return delta + (deviation * noise) @ rotation

    def row_penalty(self, hidden: Tensor) -> Tensor:
        """The weight times `normal_divergence`."""
        return self.penalty_weight * normal_divergence(self._mean(hidden), self._log_variance(hidden))
