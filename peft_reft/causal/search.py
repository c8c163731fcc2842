"""`AlignmentSearch`: learn where in a network the variables of a causal model are (distributed alignment search)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import CausalModelError, SiteError
from peft_reft.interventions import orthonormal_rows

from .accuracy import Accuracy, Decode, Encode, encoded, evaluating, interchange_accuracy
from .boundary import boundary_masks, boundary_units
from .edits import Edit
from .interchange import collect, source_views
from .losses import Loss
from .model import CausalModel, Values
from .pairs import Pair
from .passes import run
from .site import Site
from .spaces import Rotation

__all__ = ["AlignmentSearch"]


class AlignmentSearch(nn.Module):
    """Rotation R, by gradient descent on counterfactual labels (arXiv 2303.02536; boundaries: 2305.08809).

    h′ = h − Σ_V R_Vᵀ(R_V(h − s_V)): each variable V has rows R_V of one orthonormal R, the tuner's own
    `orthonormal_rows(X)`, and a source s_V. Without dimensions R is square, and a mask over its rows that runs from
    one learned boundary to the next says how much of each coordinate belongs to which variable; the temperature of its
    edges falls while it is fitted, and the alignment found has sharp ones.

    The network is frozen: it is no submodule, gets no gradients and keeps its mode.

    Args:
        model: any module.
        causal_model: what it is thought to compute.
        site: where; neither units, mask nor space.
        variables: variable → dimension; or names alone, whose dimensions are learned.
        encode: inputs of the causal model → a batch.
        loss: (output, labels) → scalar, e.g. `class_loss`.
        seed: of the start.
        example: inputs to see the site's width on; needed where the causal model's inputs may have any value.

    Attributes:
        raw: X `[rank, hidden]`.
        boundaries: `[variables]`, each one's share of the hidden size; None where dimensions are given.

    Raises:
        CausalModelError, SiteError: unknown variables, dimensions that the site does not have, a site with a space.
    """

    def __init__(
        self,
        model: nn.Module,
        causal_model: CausalModel,
        site: Site,
        variables: Mapping[str, int] | Sequence[str],
        *,
        encode: Encode,
        loss: Loss,
        seed: int,
        example: Values | None = None,
    ) -> None:
        super().__init__()
        if site.units is not None or site.mask is not None or site.space is not None:
            raise SiteError(
                f"{site.describe()}: units, mask or space",
                rule="alignment search finds which coordinates: leave them out",
            )
        self._base = (model,)  # in a tuple, so that it is no submodule
        self.causal_model, self.site, self.encode, self.loss = causal_model, site, encode, loss
        for name in variables:
            causal_model.descendants(name)  # refuses what is no variable
        self.variables = tuple(variables)
        hidden = self._probe(causal_model.sample_inputs(1, seed=0)[0] if example is None else example)
        self.dimensions = dict(variables) if isinstance(variables, Mapping) else None
        rank = hidden.shape[-1] if self.dimensions is None else sum(self.dimensions.values())
        sizes = [rank] if self.dimensions is None else list(self.dimensions.values())
        if not self.variables or min(sizes) < 1 or rank > hidden.shape[-1]:
            raise CausalModelError(
                f"variables={variables!r} at {site.describe()}",
                code="causal.dimensions",
                value=variables,
                rule=f"one or more, each of dimension 1 or more, together at most {hidden.shape[-1]}",
            )
        drawn = torch.randn(rank, hidden.shape[-1], generator=torch.Generator().manual_seed(seed))
        self.raw = nn.Parameter(orthonormal_rows(drawn).to(hidden.device))
        self.boundaries: nn.Parameter | None = None
        if self.dimensions is None:
            share = 0.5 / len(self.variables)
            self.boundaries = nn.Parameter(torch.full((len(self.variables),), share, device=hidden.device))
        self.temperature = 0.1

    @property
    def rotation(self) -> Tensor:
        """R `[rank, hidden]`."""
        return orthonormal_rows(self.raw)

    @property
    def alignment(self) -> dict[str, Site]:
        """Variable → site in R, for `interchange`, `interchange_accuracy` and `collect`; a variable whose learned
        boundaries enclose no coordinate is refused.

        Raises:
            CausalModelError: such a variable.
        """
        space = Rotation(self.rotation.detach(), check=False)
        return {name: self._at(space, units=units) for name, units in self.units().items()}

    def units(self) -> dict[str, range]:
        """Variable → its rows of R.

        Raises:
            CausalModelError: the learned boundaries of a variable enclose none.
        """
        if self.dimensions is not None:
            ends = torch.tensor([0, *self.dimensions.values()]).cumsum(0).tolist()
            return {name: range(ends[i], ends[i + 1]) for i, name in enumerate(self.variables)}
        assert self.boundaries is not None
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

    def forward(self, pairs: Sequence[Pair]) -> Tensor:
        """The loss of a batch of pairs: what the network gives under interchange against the causal model's labels."""
        sites = self._soft_sites()
        groups: dict[frozenset[str], list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(frozenset(pair.sources), []).append(pair)
        total = self.raw.new_zeros(())
        for group in groups.values():
            base, sources = encoded(group, self.encode)
            with torch.no_grad():
                views = source_views(self._base[0], sources, {name: sites[name] for name in sources})
            edits = [Edit(sites[name], source=view) for name, view in views.items()]
            output, _ = run(self._base[0], base, edits=edits, known=list(sites.values()))
            labels = [pair.label(self.causal_model) for pair in group]
            total = total + self.loss(output, labels) * (len(group) / len(pairs))
        return total

    def fit(
        self,
        pairs: Sequence[Pair],
        *,
        steps: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        boundary_weight: float = 1.0,
        temperatures: tuple[float, float] | None = None,
    ) -> list[float]:
        """Adam on X and the boundaries; the loss of every step.

        Args:
            pairs: drawn from without replacement, epoch after epoch.
            steps: of the optimiser.
            learning_rate: of Adam; falls linearly to zero.
            batch_size: pairs per step.
            seed: of the order of the pairs.
            boundary_weight: of the penalty, the share of coordinates that the variables take; with boundaries only.
            temperatures: first and last, in coordinates; None: an eighth of the hidden size, then 0.1.

        Raises:
            CausalModelError: no pairs, a variable of a pair that is not searched, no steps.
        """
        unknown = {name for pair in pairs for name in pair.sources} - set(self.variables)
        if unknown or not pairs or steps < 1 or batch_size < 1:
            raise CausalModelError(
                f"{len(pairs)} pairs, {steps} steps of {batch_size}, unknown variables {sorted(unknown)}",
                code="causal.pairs",
                value=sorted(unknown),
                rule=f"pairs of the variables {', '.join(self.variables)}; at least one pair, step and pair a step",
            )
        first, last = temperatures or (max(self.raw.shape[1] / 8, 0.1), 0.1)
        parameters = list(self.parameters())
        optimiser = torch.optim.Adam(parameters, lr=learning_rate)
        batches = _batches(pairs, batch_size, random.Random(seed))
        losses = []
        with evaluating(self._base[0]):
            for step in range(steps):
                done = step / max(steps - 1, 1)
                self.temperature = first * (last / first) ** done
                optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
                loss = self(next(batches))
                penalty = 0.0 if self.boundaries is None else boundary_weight * self.boundaries.clamp(0, 1).sum()
                # not backward(): the network's parameters keep their gradients
                gradients = torch.autograd.grad(loss + penalty, parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                losses.append(float(loss.detach()))
        optimiser.zero_grad()
        return losses

    def accuracy(self, pairs: Sequence[Pair], *, decode: Decode, batch_size: int = 256) -> Accuracy:
        """`interchange_accuracy` of the alignment found, on pairs that it was not fitted on."""
        return interchange_accuracy(
            self._base[0],
            self.causal_model,
            self.alignment,
            pairs,
            encode=self.encode,
            decode=decode,
            batch_size=batch_size,
        )

    def _probe(self, example: Values) -> Tensor:
        with evaluating(self._base[0]), torch.no_grad():
            return collect(self._base[0], self.encode([example]), self.site)

    def _soft_sites(self) -> dict[str, Site]:
        space = Rotation(self.rotation, check=False)
        if self.boundaries is None:
            return {name: self._at(space, units=units) for name, units in self.units().items()}
        masks = boundary_masks(self.boundaries, self.raw.shape[0], self.temperature)
        return {name: self._at(space, mask=mask) for name, mask in zip(self.variables, masks, strict=True)}

    def _at(self, space: Rotation, **what: Any) -> Site:
        names = ("module", "on_input", "call", "layer", "component", "layers_pattern", "position", "joint")
        return Site(**{name: getattr(self.site, name) for name in names}, space=space, **what)


def _batches(pairs: Sequence[Pair], size: int, generator: random.Random) -> Any:
    """Batches without end; each pair once before any comes again."""
    queue: list[Pair] = []
    while True:
        while len(queue) < size:
            queue.extend(generator.sample(list(pairs), len(pairs)))
        yield queue[:size]
        queue = queue[size:]
