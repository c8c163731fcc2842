"""A learned vector added to h: a steering vector that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import Intervention
from .registry import register_intervention

__all__ = ["Bias"]


@register_intervention("bias", version=1)
class Bias(Intervention):
    """h′ = h + v (BitFit's idea, arXiv 2106.10199, on a hidden state; LoFiT, arXiv 2406.01563, at one head).

    The fewest parameters, and the one kind that llama.cpp can run (a control vector). It has no rank: `r` is not used.
    Parameter: `shift` v `[hidden]`.
    """

    shift: Tensor
    broadcasts = True
    tensors = {"shift": ("hidden",)}

    def identity(self) -> None:
        """v = 0."""
        torch.nn.init.zeros_(self.shift)

    def paper_start(self) -> None:
        """The published start is the identity."""
        self.identity()

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """v, the same for every row."""
        return self.parameter("shift", hidden).expand_as(hidden)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """The factor times v."""
        return "bias", {"shift": factor * self.shift}

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor]:
        """The sum of their vectors."""
        return {"shift": torch.stack([part["shift"] for part in parts]).sum(0)}
