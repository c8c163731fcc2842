"""ConsReFT: LoReFT towards a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .affine import Affine
from .base import Intervention
from .registry import register_intervention
from .rotation import orthonormal_rows

__all__ = ["ConsReft", "ConstantSource", "consreft_delta"]


def consreft_delta(hidden: Tensor, rotation: Tensor, bias: Tensor) -> Tensor:
    """Rᵀ(b − Rh). hidden `[..., hidden]`, rotation `[rank, hidden]`, bias `[rank]`; returns `[..., hidden]`."""
    return (bias - hidden @ rotation.mT) @ rotation


class ConstantSource(Intervention):
    """What the kinds with a constant source share: raw `rotation`, `bias` b, and the published start of b."""

    rotation: Tensor
    bias: Tensor
    tensors: ClassVar[Mapping[str, tuple[str, ...]]] = {"rotation": ("rank", "hidden"), "bias": ("rank",)}
    orthonormal: ClassVar[frozenset[str]] = frozenset({"rotation"})

    def paper_start(self) -> None:
        """R orthonormal; b uniform in [0, 1), as pyreft draws its `learned_source`."""
        super().paper_start()
        torch.nn.init.uniform_(self.bias, 0.0, 1.0)


@register_intervention("consreft", version=1)
class ConsReft(ConstantSource):
    """h′ = h + Rᵀ(b − Rh), R Rᵀ = I (arXiv 2404.03592, appendix on ablations, "Rᵀ(b − Rh)").

    Sets the subspace to one learned point, whatever h is: the closest kind to an interchange intervention with a fixed
    source. No choice of parameters makes it the identity. Parameters: raw `rotation`, `bias` b.
    """

    broadcasts = True
    pads = True

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """See `consreft_delta`."""
        return consreft_delta(hidden, rotation, self.parameter("bias", hidden))

    def affine(self, tensors: Mapping[str, Tensor], rotation: Tensor) -> Affine:
        """Rᵀ(−Rh + b)."""
        return Affine(-rotation, tensors["bias"], rotation)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """Rᵀ(b − Rh) is `direft` with P = R and W = −R."""
        rotation = orthonormal_rows(self.raw_rotation())
        return "direft", {"projection": factor * rotation, "weight": -rotation, "bias": self.bias}
