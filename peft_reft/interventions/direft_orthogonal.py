"""DiReFT with an orthonormal projection."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .affine import Affine
from .direft import SourceStartsAtZero, direft_delta
from .registry import register_intervention
from .rotation import orthonormal_rows

__all__ = ["DiReftOrthogonal"]


@register_intervention("direft_orthogonal", version=1)
class DiReftOrthogonal(SourceStartsAtZero):
    """h′ = h + Rᵀ act(Wh + b), R Rᵀ = I (arXiv 2404.03592, appendix on ablations, "Rᵀ(Wh + b)").

    DiReFT whose edit has the length of its source: |h′ − h| = |act(Wh + b)|. pyreft calls this class
    `DireftIntervention`. Parameters: raw `rotation`, `weight` W, `bias` b.
    """

    rotation: Tensor
    broadcasts = True
    pads = True
    tensors = {"rotation": ("rank", "hidden"), "weight": ("rank", "hidden"), "bias": ("rank",)}
    orthonormal = frozenset({"rotation"})

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """See `direft_delta`, with R for P."""
        weight, bias = self.parameter("weight", hidden), self.parameter("bias", hidden)
        return direft_delta(hidden, rotation, weight, bias, self.act_fn)

    def affine(self, tensors: Mapping[str, Tensor], rotation: Tensor) -> Affine:
        """Rᵀ(Wh + b)."""
        return Affine(tensors["weight"], tensors["bias"], rotation)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """`direft` with P = R times the factor."""
        rotation = orthonormal_rows(self.raw_rotation())
        return "direft", {"projection": factor * rotation, "weight": self.weight, "bias": self.bias}
