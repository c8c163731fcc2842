"""LoReFT: replace what h is inside a learned subspace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .affine import Affine
from .base import Intervention, activation
from .registry import register_intervention
from .rotation import orthonormal_rows

__all__ = ["LoReft", "loreft_delta"]


def loreft_delta(hidden: Tensor, rotation: Tensor, weight: Tensor, bias: Tensor, act_fn: str | None = None) -> Tensor:
    """Rᵀ(act(Wh + b) − Rh).

    hidden `[..., hidden]`, rotation R and weight W `[rank, hidden]`, bias b `[rank]`; returns `[..., hidden]`.
    """
    if act_fn is None:  # W − R folded: one product over the hidden size instead of two
        return (hidden @ (weight - rotation).mT + bias) @ rotation
    source = activation(act_fn, hidden @ weight.mT + bias)
    return (source - hidden @ rotation.mT) @ rotation


@register_intervention("loreft", version=1)
class LoReft(Intervention):
    """h′ = h + Rᵀ(act(Wh + b) − Rh), R Rᵀ = I (arXiv 2404.03592, equation 2).

    The edit changes h only inside the r-dimensional subspace spanned by R's rows. The paper's default, and the kind to
    start with. Parameters: raw `rotation` X with R = `orthonormal_rows(X)`, `weight` W, `bias` b.
    """

    rotation: Tensor
    weight: Tensor
    bias: Tensor
    broadcasts = True
    pads = True
    tensors = {"rotation": ("rank", "hidden"), "weight": ("rank", "hidden"), "bias": ("rank",)}
    orthonormal = frozenset({"rotation"})
    activates = True

    def identity(self) -> None:
        """W = R, b = 0."""
        self.paper_start()
        self.weight.copy_(orthonormal_rows(self.raw_rotation()))
        torch.nn.init.zeros_(self.bias)

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """See `loreft_delta`."""
        weight, bias = self.parameter("weight", hidden), self.parameter("bias", hidden)
        return loreft_delta(hidden, rotation, weight, bias, self.act_fn)

    def affine(self, tensors: Mapping[str, Tensor], rotation: Tensor) -> Affine:
        """Rᵀ((W − R)h + b)."""
        return Affine(tensors["weight"] - rotation, tensors["bias"], rotation)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]] | None:
        """Without an activation Rᵀ(Wh + b − Rh) is `direft` with P = R and W − R."""
        if self.act_fn is not None:
            return None
        rotation = orthonormal_rows(self.raw_rotation())
        return "direft", {"projection": factor * rotation, "weight": self.weight - rotation, "bias": self.bias}
