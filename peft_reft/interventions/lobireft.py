"""LobiReFT: a constant inside a learned subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from .consreft import ConstantSource
from .registry import register_intervention
from .rotation import orthonormal_rows

__all__ = ["LobiReft"]


@register_intervention("lobireft", version=1)
class LobiReft(ConstantSource):
    """h′ = h + Rᵀb, R Rᵀ = I (arXiv 2404.03592, appendix on ablations, "Rᵀb").

    A steering vector of rank r; the weakest kind of the paper's ablation, since it does not see h. Prefer `bias` for
    new work: it is the same set of edits with hidden instead of r · hidden parameters. Parameters: raw `rotation`,
    `bias` b.
    """

    broadcasts = True
    pads = True

    def identity(self) -> None:
        """b = 0."""
        self.paper_start()
        torch.nn.init.zeros_(self.bias)

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Rᵀb, the same for every row."""
        return (self.parameter("bias", hidden) @ rotation).expand_as(hidden)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """Rᵀb is one vector: a `bias`."""
        return "bias", {"shift": factor * (self.bias @ orthonormal_rows(self.raw_rotation()))}
