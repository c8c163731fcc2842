"""LoReFT behind a gate: the edit chooses the tokens it acts on."""

from __future__ import annotations

import torch
from torch import Tensor

from .loreft import LoReft
from .registry import register_intervention

__all__ = ["Gated", "gate"]


def gate(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """σ(uh + c). hidden `[..., hidden]`, weight u `[1, hidden]`, bias c `[1]`; returns `[..., 1]`."""
    return torch.sigmoid(hidden @ weight.mT + bias)


@register_intervention("gated", version=1)
class Gated(LoReft):
    """h′ = h + σ(uh + c) · Rᵀ(act(Wh + b) − Rh), R Rᵀ = I: LoReFT (arXiv 2404.03592) with JoLA's gate (2502.01179).

    For `positions` that are wider than what needs an edit, e.g. `"all"`: the gate learns where to act. It starts half
    open. Parameters: those of `loreft`, `gate_weight` u and `gate_bias` c.
    """

    gate_weight: Tensor
    gate_bias: Tensor
    pads = True
    tensors = {**LoReft.tensors, "gate_weight": ("one", "hidden"), "gate_bias": ("one",)}

    def paper_start(self) -> None:
        """LoReFT's start, and a gate that is half open everywhere."""
        super().paper_start()
        torch.nn.init.zeros_(self.gate_weight)
        torch.nn.init.zeros_(self.gate_bias)

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """The gate times `loreft_delta`."""
        opening = gate(hidden, self.parameter("gate_weight", hidden), self.parameter("gate_bias", hidden))
        return opening * super().edit_delta(hidden, rotation)
