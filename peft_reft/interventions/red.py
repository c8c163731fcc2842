"""RED: scale and shift h, element by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import Intervention
from .registry import register_intervention

__all__ = ["Red", "red_delta"]


def red_delta(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(s − 1) ⊙ h + v. hidden `[..., hidden]`, scale s and shift v `[hidden]`; returns `[..., hidden]`."""
    return hidden * (scale - 1) + shift


@register_intervention("red", version=1)
class Red(Intervention):
    """h′ = s ⊙ h + v (RED, arXiv 2402.15179, equation 2).

    Published for `component="mlp_output"` at every layer and `positions="all"`. It has no rank: `r` is not used.
    Parameters: `scale` s, `shift` v, both `[hidden]`.
    """

    scale: Tensor
    shift: Tensor
    broadcasts = True
    tensors = {"scale": ("hidden",), "shift": ("hidden",)}

    def identity(self) -> None:
        """s = 1, v = 0."""
        torch.nn.init.ones_(self.scale)
        torch.nn.init.zeros_(self.shift)

    def paper_start(self) -> None:
        """The published start is the identity."""
        self.identity()

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """See `red_delta`."""
        return red_delta(hidden, self.parameter("scale", hidden), self.parameter("shift", hidden))

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """The factor times s − 1 and v."""
        return "red", {"scale": 1 + factor * (self.scale - 1), "shift": factor * self.shift}

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor]:
        """The sums of their s − 1 and of their v."""
        scale, shift = (torch.stack([part[name] for part in parts]) for name in ("scale", "shift"))
        return {"scale": 1 + (scale - 1).sum(0), "shift": shift.sum(0)}
