"""ReFT-r1: one direction that detects a concept and steers along itself."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import count

from .base import Intervention
from .registry import register_intervention

__all__ = ["ReftR1", "top_mean"]


def top_mean(values: Tensor, sequence: Tensor, top: int) -> Tensor:
    """The mean of the `top` largest values of each row's sequence (of all of them where there are fewer).

    Args:
        values: `[n]`.
        sequence: long `[n]`, a number for the sequence that a row belongs to.
        top: k.

    Returns:
        `[n]`: for each row the mean of its sequence.
    """
    falling = values.argsort(descending=True, stable=True)
    order = falling[sequence[falling].argsort(stable=True)]  # by sequence, and within one by falling value
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = sequence[order][1:] != sequence[order][:-1]
    group = first.cumsum(0) - 1  # sequences renumbered from 0, without a look at how many there are
    lengths = torch.zeros_like(order).scatter_add(0, group, torch.ones_like(order))
    rank = torch.arange(len(values), device=values.device) - (lengths.cumsum(0) - lengths)[group]
    kept = torch.where(rank < top, values[order], torch.zeros_like(values))
    means = torch.zeros_like(values).scatter_add(0, group, kept) / lengths.clamp(1, top)
    return torch.empty_like(values).scatter(0, order, means[group])


@register_intervention("reft_r1", version=1)
class ReftR1(Intervention):
    """h′ = h + mean(topₖ(ReLU(h·w))) w, ‖w‖ = 1 (AxBench, arXiv 2501.17148, section 4, ReFT-r1).

    The mean runs over the k edited tokens of a sequence that show the concept most, so the whole sequence must be in
    one forward: with positions that reach into the generation, decoding over a cache is refused. `scale_adapter` sets
    the strength. Choose it to find and steer one concept with one direction. It has no rank: `r` is not used, and no
    useful identity start: at w·h ≤ 0 everywhere there is no gradient. Option `topk`: k, 8 by default. Parameter: raw
    `rotation` `[1, hidden]`, w its normalisation.
    """

    tensors = {"rotation": ("one", "hidden")}
    orthonormal = frozenset({"rotation"})
    option_table = {"topk": count(8)}
    across_tokens = True

    def edit_delta(self, hidden: Tensor, rotation: Tensor, *, sequence: Tensor | None = None) -> Tensor:
        """See `top_mean`; rows that are not edited have the sequence −1, one of their own."""
        values = torch.relu(hidden @ rotation[0])
        flat = values.reshape(-1)
        if sequence is None:
            width = values.shape[-1] if values.dim() else 1
            sequence = torch.arange(flat.numel(), device=flat.device) // max(width, 1)
        means = top_mean(flat, sequence.reshape(-1), self.options["topk"])
        return means.reshape(values.shape)[..., None] * rotation[0]
