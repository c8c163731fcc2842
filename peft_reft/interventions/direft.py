"""DiReFT: add a low-rank function of h to h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .affine import Affine
from .base import Intervention, activation
from .registry import register_intervention

__all__ = ["DiReft", "SourceStartsAtZero", "direft_delta"]


def direft_delta(
    hidden: Tensor, projection: Tensor, weight: Tensor, bias: Tensor, act_fn: str | None = None
) -> Tensor:
    """Pᵀ act(Wh + b).

    hidden `[..., hidden]`, projection P and weight W `[rank, hidden]`, bias b `[rank]`; returns `[..., hidden]`.
    """
    return activation(act_fn, hidden @ weight.mT + bias) @ projection


class SourceStartsAtZero(Intervention):
    """What both DiReFT kinds share: the learned source Wh + b, and W = 0, b = 0 as the identity."""

    weight: Tensor
    bias: Tensor
    activates = True
    act_keeps_identity = True

    def identity(self) -> None:
        """W = 0, b = 0; the projection as published."""
        self.paper_start()
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)


@register_intervention("direft", version=1)
class DiReft(SourceStartsAtZero):
    """h′ = h + Pᵀ act(Wh + b) (arXiv 2404.03592, equation 3): LoReFT without subtraction and orthogonality.

    Like LoRA, applied to hidden states. Cheaper per step than LoReFT, a little less accurate in the paper.
    Parameters: `projection` P, `weight` W, `bias` b. pyreft calls this class `NodireftIntervention`.
    """

    projection: Tensor
    broadcasts = True
    pads = True
    tensors = {"projection": ("rank", "hidden"), "weight": ("rank", "hidden"), "bias": ("rank",)}

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """See `direft_delta`."""
        projection, weight, bias = (self.parameter(name, hidden) for name in ("projection", "weight", "bias"))
        return direft_delta(hidden, projection, weight, bias, self.act_fn)

    def affine(self, tensors: Mapping[str, Tensor]) -> Affine:
        """Pᵀ(Wh + b)."""
        return Affine(tensors["weight"], tensors["bias"], tensors["projection"])

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """The factor goes into P."""
        return "direft", {"projection": factor * self.projection, "weight": self.weight, "bias": self.bias}

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor] | None:
        """Their rows one below the other: the ranks add."""
        rows = {name: torch.cat([part[name] for part in parts]) for name in cls.tensors}
        return rows if len(rows["bias"]) <= hidden_size else None
