"""An adapter after the block: two thin maps with an activation between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .affine import Affine
from .base import Intervention, activation
from .registry import register_intervention

__all__ = ["Adapter"]

START = 1e-3
"""By how much the start of W_d is smaller than that of `nn.Linear`."""


@register_intervention("adapter", version=1)
class Adapter(Intervention):
    """h′ = h + W_u φ(W_d h) (post-block steering, arXiv 2603.00425), φ the activation, without biases.

    Made for `component="block_output"`, every block and `positions="all"`; `act_fn="silu"` is what its authors take,
    and without an activation it is their linear form. Their start: W_d as in `nn.Linear` times 10⁻³, W_u = 0, which is
    the identity whatever the activation. With `MixedReftModel(…, orthogonal=True)` the rows of W_d are kept out of
    what the block's LoRA writes. `direft` is the same with a bias and another start. Parameters: `down` W_d and `up`
    W_uᵀ, both `[rank, hidden]`.

    Source: the paper's formula; start, default activation and joint training from its authors' code
    (github.com/SprocketLab/steerling, `LowRankAdapter`).
    """

    down: Tensor
    up: Tensor
    broadcasts = True
    pads = True
    tensors = {"down": ("rank", "hidden"), "up": ("rank", "hidden")}
    activates = True
    reads = "down"

    @classmethod
    def starts_as_identity(cls, act_fn: str | None) -> bool:
        """Always: W_u = 0 is, whatever stands before it."""
        return True

    def paper_start(self) -> None:
        """W_d uniform in ±10⁻³/√hidden, W_u = 0."""
        bound = START / math.sqrt(self.hidden_size)
        torch.nn.init.uniform_(self.down, -bound, bound)
        torch.nn.init.zeros_(self.up)

    def identity(self) -> None:
        """The published start."""
        self.paper_start()

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """W_u φ(W_d h)."""
        return activation(self.act_fn, hidden @ self.parameter("down", hidden).mT) @ self.parameter("up", hidden)

    def affine(self, tensors: Mapping[str, Tensor]) -> Affine:
        """W_u W_d h."""
        down = tensors["down"]
        return Affine(down, down.new_zeros(down.shape[:-1]), tensors["up"])

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """The factor goes into W_u."""
        return "adapter", {"down": self.down, "up": factor * self.up}

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor] | None:
        """Their rows one below the other: the ranks add."""
        rows = {name: torch.cat([part[name] for part in parts]) for name in cls.tensors}
        return rows if len(rows["down"]) <= hidden_size else None
