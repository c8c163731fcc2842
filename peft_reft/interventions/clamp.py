"""A bound on how far h reaches along one direction; both bounds at 0 ablate the direction."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

from .base import Intervention
from .registry import register_intervention

__all__ = ["Clamp", "clamp_delta"]


def clamp_delta(hidden: Tensor, direction: Tensor, strength: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """s (min(max(h·v̂, lo), hi) − h·v̂) v̂.

    hidden `[..., hidden]`, direction v̂ `[1, hidden]` of length 1, strength s, low lo and high hi `[1]`; returns
    `[..., hidden]`.
    """
    reach = hidden @ direction.mT
    return strength * (torch.minimum(torch.maximum(reach, low), high) - reach) @ direction


@register_intervention("clamp", version=1)
class Clamp(Intervention):
    """h′ = h + s (clip(h·v̂, lo, hi) − h·v̂) v̂, ‖v̂‖ = 1: h's coordinate along v̂ is kept between two bounds.

    lo = hi = 0, s = 1 is directional ablation (arXiv 2406.11717, section 2.4); lo = hi sets the coordinate, as
    clamping a feature does; s between 0 and 1 goes part of the way. Everything is trained: direction, bounds,
    strength. It starts with s = 0 at lo = hi = 0, the identity; `"paper"` is the ablation of a random direction.
    Where training moves lo above hi, hi counts. It has no rank: `r` is not used. Parameters: raw `rotation` `[1,
    hidden]`, v̂ its normalisation, `strength` s, `low` lo, `high` hi, each `[1]`.
    """

    rotation: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    broadcasts = True
    tensors = {"rotation": ("one", "hidden"), "strength": ("one",), "low": ("one",), "high": ("one",)}
    orthonormal = frozenset({"rotation"})

    def paper_start(self) -> None:
        """A random direction, ablated."""
        super().paper_start()
        torch.nn.init.ones_(self.strength)
        for bound in (self.low, self.high):
            torch.nn.init.zeros_(bound)

    def identity(self) -> None:
        """s = 0."""
        self.paper_start()
        torch.nn.init.zeros_(self.strength)

    @torch.no_grad()
    def bring(self, direction: Tensor, *, low: float = 0.0, high: float = 0.0, strength: float = 1.0) -> None:
        """Take a direction that was found elsewhere; without bounds it is ablated.

        Args:
            direction: v `[hidden]`, of any length but 0.
            low, high: the bounds of h·v̂.
            strength: s.

        Raises:
            ConfigError: another shape, a direction of length 0, or a lower bound above the upper one.
        """
        if tuple(direction.shape) != (self.hidden_size,) or not bool(direction.norm() > 0):
            raise ConfigError(
                f"direction has shape {list(direction.shape)} and length {float(direction.norm()):g}",
                value="direction",
                rule=f"it is [{self.hidden_size}], and not 0",
            )
        if low > high:
            raise ConfigError(
                f"low={low!r}, high={high!r}", value=low, rule="the lower bound is at most the upper one"
            )
        self.rotation.copy_(direction[None])
        for held, value in ((self.strength, strength), (self.low, low), (self.high, high)):
            held.fill_(value)

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """See `clamp_delta`."""
        given = (self.parameter(name, hidden) for name in ("strength", "low", "high"))
        return clamp_delta(hidden, rotation, *given)
