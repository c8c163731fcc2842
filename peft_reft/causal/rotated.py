"""A site with a rotation that is learned: which of its coordinates are which variable's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import CausalModelError, SiteError
from peft_reft.interventions import orthonormal_rows

from .boundary import boundary_masks, boundary_units
from .site import Site
from .spaces import Rotation

__all__ = ["RotatedSite"]

_ADDRESS = ("module", "on_input", "call", "layer", "component", "layers_pattern", "position", "joint")


class RotatedSite(nn.Module):
    """R `[rank, hidden]` at one site, its rows shared out among variables: by given dimensions or learned boundaries.

    Args:
        site: neither units, mask nor space.
        variables: variable → dimension; or names alone, whose dimensions are learned.
        hidden: size of the vectors there.
        device: of the parameters.

    Attributes:
        raw: X `[rank, hidden]`; R is `orthonormal_rows(X)`.
        boundaries: `[variables]`, each one's share of the hidden size; None where dimensions are given.
        temperature: of the boundaries' edges, in coordinates.

    Raises:
        SiteError, CausalModelError: a site with a space, dimensions that it does not have.
    """

    def __init__(
        self, site: Site, variables: Mapping[str, int] | Sequence[str], *, hidden: int, device: torch.device
    ) -> None:
        super().__init__()
        if site.units is not None or site.mask is not None or site.space is not None:
            raise SiteError(
                f"{site.describe()}: units, mask or space",
                rule="alignment search finds which coordinates: leave them out",
            )
        self.site = site
        self.variables: tuple[str, ...] = tuple(variables)
        self.dimensions: dict[str, int] | None = dict(variables) if isinstance(variables, Mapping) else None
        sizes = [hidden] if self.dimensions is None else list(self.dimensions.values())
        if not self.variables or min(sizes) < 1 or sum(sizes) > hidden:
            raise CausalModelError(
                f"variables={variables!r} at {site.describe()}",
                code="causal.dimensions",
                value=variables,
                rule=f"one or more, each of dimension 1 or more, together at most {hidden}",
            )
        self.raw: nn.Parameter = nn.Parameter(torch.empty(sum(sizes), hidden, device=device))
        self.boundaries: nn.Parameter | None = None
        if self.dimensions is None:
            self.boundaries = nn.Parameter(torch.empty(len(self.variables), device=device))
        self.temperature: float = 0.1

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Start anew: orthonormal rows, and boundaries that give the variables half of the coordinates."""
        self.raw.copy_(orthonormal_rows(torch.randn(self.raw.shape, generator=generator)))
        if self.boundaries is not None:
            self.boundaries.fill_(0.5 / len(self.variables))

    @property
    def rotation(self) -> Tensor:
        """R `[rank, hidden]`."""
        return orthonormal_rows(self.raw)

    @property
    def hidden(self) -> int:
        """Size of the vectors there."""
        return self.raw.shape[1]

    def units(self) -> dict[str, range]:
        """Variable → its rows of R.

        Raises:
            CausalModelError: the learned boundaries of a variable enclose none.
        """
        if self.boundaries is None:
            ends = torch.tensor([0, *(self.dimensions or {}).values()]).cumsum(0).tolist()
            return {name: range(ends[i], ends[i + 1]) for i, name in enumerate(self.variables)}
        found = boundary_units(self.boundaries.detach(), self.raw.shape[0])
        for name, units in zip(self.variables, found, strict=True):
            if not units:
                raise CausalModelError(
                    f"the boundaries leave no coordinate to {name!r}",
                    code="causal.boundary",
                    value=name,
                    rule="nothing of the variable was found at this site",
                    fix="fit longer, with a smaller boundary_weight, or give dimensions",
                )
        return dict(zip(self.variables, found, strict=True))

    def sites(self) -> dict[str, Site]:
        """Variable → site in R as it is now, without gradients."""
        space = Rotation(self.rotation.detach(), check=False)
        return {name: self._at(space, units=units) for name, units in self.units().items()}

    def soft_sites(self, exchanged: Mapping[str, Tensor], device: torch.device) -> dict[str, Site]:
        """Variable → site in R, with gradients; a mask says of each row of a batch what is exchanged.

        Args:
            exchanged: variable → bool `[batch]`; others are left out.
            device: the network's.
        """
        space = Rotation(self.rotation.to(device), check=False)
        return {
            name: self._at(space, mask=exchanged[name].to(device)[:, None] * mask.to(device))
            for name, mask in zip(self.variables, self._masks(), strict=True)
            if name in exchanged
        }

    def whole(self) -> Site:
        """All coordinates in R, whosever they are."""
        return self._at(Rotation(self.rotation.detach(), check=False))

    def _masks(self) -> list[Tensor]:
        """Of each variable `[rank]`, how much of each coordinate is its own."""
        rank = self.raw.shape[0]
        if self.boundaries is not None:
            return boundary_masks(self.boundaries, rank, self.temperature)
        places = torch.arange(rank, device=self.raw.device)
        return [((places >= rows.start) & (places < rows.stop)).float() for rows in self.units().values()]

    def _at(self, space: Rotation, **what: Any) -> Site:
        return Site(**{name: getattr(self.site, name) for name in _ADDRESS}, space=space, **what)


def address_of(site: Site) -> tuple[Any, ...]:
    """What tells two sites' vectors apart."""
    return tuple(getattr(site, name) for name in _ADDRESS)
