"""NoReFT: LoReFT without the constraint on the projection."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import flag

from .affine import Affine
from .base import Intervention
from .loreft import loreft_delta
from .registry import register_intervention

__all__ = ["NoReft"]


@register_intervention("noreft", version=1)
class NoReft(Intervention):
    """h′ = h + Pᵀ(act(Wh + b) − Ph) (arXiv 2404.03592, appendix on ablations, NoReFT).

    Where an orthonormal R costs too much (very high rank) or a checkpoint of another library has none. Parameters:
    `projection` P, `weight` W, `bias` b. With `options={"add_bias": True}` also `projection_bias` c on what is
    subtracted, Pᵀ(act(Wh + b) − Ph − c), as pyreft's `NoreftIntervention` has it and the paper has not.
    """

    projection: Tensor
    weight: Tensor
    bias: Tensor
    projection_bias: Tensor
    broadcasts = True
    pads = True
    tensors = {
        "projection": ("rank", "hidden"),
        "weight": ("rank", "hidden"),
        "bias": ("rank",),
        "projection_bias": ("rank",),
    }
    option_table = {"add_bias": flag(False)}
    optional = {"projection_bias": "add_bias"}
    activates = True

    def identity(self) -> None:
        """W = P, b = 0, c = 0."""
        self.paper_start()
        self.weight.copy_(self.projection)
        for name in ("bias", "projection_bias"):
            if (bias := getattr(self, name, None)) is not None:
                torch.nn.init.zeros_(bias)

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """See `loreft_delta`, with P for R."""
        projection, weight, bias = (self.parameter(name, hidden) for name in ("projection", "weight", "bias"))
        delta = loreft_delta(hidden, projection, weight, bias, self.act_fn)
        if self.options["add_bias"]:
            delta = delta - self.parameter("projection_bias", hidden) @ projection
        return delta

    def affine(self, tensors: Mapping[str, Tensor]) -> Affine:
        """Pᵀ((W − P)h + b − c)."""
        bias = tensors["bias"] - tensors["projection_bias"] if self.options["add_bias"] else tensors["bias"]
        return Affine(tensors["weight"] - tensors["projection"], bias, tensors["projection"])

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]] | None:
        """Without an activation Pᵀ(Wh + b − Ph − c) is `direft` with W − P and b − c."""
        if self.act_fn is not None:
            return None
        bias = self.bias - self.projection_bias if self.options["add_bias"] else self.bias
        return "direft", {
            "projection": factor * self.projection,
            "weight": self.weight - self.projection,
            "bias": bias,
        }
