"""PrOSV: a steering vector whose factor and direction are trained together, at a few tokens of the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import number

from .base import Intervention
from .registry import register_intervention

__all__ = ["Prosv"]


@register_intervention("prosv", version=1)
class Prosv(Intervention):
    """h′ = h + α v (prompt-only steering vector, arXiv 2605.05983).

    The direction v is free, not normalised: α and v are a pair that is trained at once, so that nothing is left to be
    chosen after training. What that needs is a large start and a learning rate of its own for α: the start is α = a
    √hidden and v uniform in ±c/√hidden, with the options `factor_start` a and `direction_start` c;
    `peft_reft.parameter_groups` gives a stock trainer the rates. Published for the first and last tokens of a prompt:
    their `p4+s2` is `positions="f4+l2"`; on Gemma 2 2B they take a = 4, c = 8, rates 10 and 0.04, and clip the
    gradient of v alone. It has no rank: `r` is not used, and no identity start, which would be the small start that
    the paper warns of. Parameters: `factor` α `[1]`, `direction` v `[hidden]`.

    Source: of the paper its abstract could be read here; the formula, that v is free, the start and the rates come
    from its authors' post and code (github.com/colored-dye/prosv, `ConceptVectorIntervention`, adapter type
    `add_free`).
    """

    factor: Tensor
    direction: Tensor
    broadcasts = True
    tensors = {"factor": ("one",), "direction": ("hidden",)}
    option_table = {"factor_start": number(1.0), "direction_start": number(1.0)}

    def paper_start(self) -> None:
        """α = a √hidden; v uniform in ±c/√hidden."""
        root = math.sqrt(self.hidden_size)
        bound = self.options["direction_start"] / root
        torch.nn.init.constant_(self.factor, self.options["factor_start"] * root)
        torch.nn.init.uniform_(self.direction, -bound, bound)

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """α v, the same for every row."""
        return (self.parameter("factor", hidden) * self.parameter("direction", hidden)).expand_as(hidden)

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]]:
        """The factor times α."""
        return "prosv", {"factor": factor * self.factor, "direction": self.direction}

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor]:
        """The sum of their vectors, with α = 1."""
        whole = torch.stack([part["factor"] * part["direction"] for part in parts]).sum(0)
        return {"factor": torch.ones_like(parts[0]["factor"]), "direction": whole}
