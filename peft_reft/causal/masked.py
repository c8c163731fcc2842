"""A site with fixed directions of which some are chosen: single neurons, or principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import CausalModelError

from .rotated import RotatedSite
from .site import Site

__all__ = ["Featurizer", "MaskedSite"]

Featurizer = Literal["rotation", "neurons", "components"]


class MaskedSite(RotatedSite):
    """Directions that stay, and a mask over them that is learned: differentiable binary masking (arXiv 2504.13151).

    Each direction has a score for each variable, and its share is the softmax over the variables and "none", at a
    temperature that falls; the alignment found takes the directions of the highest scores, as many as were asked for.

    Args:
        site, variables, hidden, device: as of `RotatedSite`, with dimensions.
        directions: orthonormal rows `[directions, hidden]`; None for the neurons themselves.
    """

    directions: Tensor

    def __init__(
        self,
        site: Site,
        variables: Mapping[str, int] | Sequence[str],
        *,
        hidden: int,
        device: torch.device,
        directions: Tensor | None = None,
    ) -> None:
        super().__init__(site, variables, hidden=hidden, device=device)
        if self.dimensions is None:
            raise CausalModelError(
                f"variables={variables!r} without dimensions",
                code="causal.dimensions",
                value=variables,
                rule="a mask takes as many directions as it is told",
                fix="give dimensions, e.g. {'A': 4}",
            )
        del self.raw
        rows = torch.eye(hidden) if directions is None else directions
        if len(rows) < sum(self.dimensions.values()):
            raise CausalModelError(
                f"{len(rows)} directions at {site.describe()}",
                code="causal.dimensions",
                value=len(rows),
                rule=f"the variables take {sum(self.dimensions.values())}",
            )
        self.register_buffer("directions", rows.to(device, torch.float32))
        self.scores: nn.Parameter = nn.Parameter(torch.empty(len(self.variables), len(rows), device=device))

    @property
    def hidden(self) -> int:
        """Size of the vectors there."""
        return self.directions.shape[1]

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Start anew: scores near 0, that differ."""
        self.scores.copy_(0.01 * torch.randn(self.scores.shape, generator=generator))

    @property
    def rotation(self) -> Tensor:
        """The directions `[directions, hidden]`."""
        return self.directions

    def units(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]  # rows anywhere, not in a range
        """Variable → its rows: the highest scores, each row given to one variable, the first asks first."""
        taken: set[int] = set()
        found: dict[str, tuple[int, ...]] = {}
        for name, scores in zip(self.variables, self.scores.detach(), strict=True):
            order = [row for row in scores.argsort(descending=True, stable=True).tolist() if row not in taken]
            found[name] = tuple(sorted(order[: (self.dimensions or {})[name]]))
            taken |= set(found[name])
        return found

    def _masks(self) -> list[Tensor]:
        none = torch.zeros_like(self.scores[:1])
        shares = torch.softmax(torch.cat([self.scores, none]) / max(self.temperature, 1e-3), 0)
        return list(shares[:-1])
