"""`AlignmentSearch`: learn where in a network the variables of a causal model are (distributed alignment search)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peft_reft.runtime.evaluating import device_of, evaluating

from .accuracy import Decode
from .calibrating import calibrated
from .calibration import FEWEST, Calibration, Nulls, Untrained
from .dataset import Encode, InterchangeCollator, InterchangeDataset
from .edits import Edit
from .fitting import fit
from .found import Found
from .frozen import frozen, moved
from .interchange import collect, interchange, source_views
from .losses import Loss, measured
from .masked import MaskedSite
from .model import CausalModel, Values
from .pairs import Pair
from .passes import run
from .places import by_site, check_searched, probe_batch
from .rotated import RotatedSite
from .site import Site

__all__ = ["AlignmentSearch"]


class AlignmentSearch(Found):
    """Rotations R, by gradient descent on counterfactual labels (arXiv 2303.02536; boundaries: 2305.08809).

    h′ = h − Σ_V R_Vᵀ(R_V(h − s_V)): each variable V has rows R_V of one orthonormal R, the tuner's own
    `orthonormal_rows(X)`, and a source s_V. Without dimensions R is square, and a mask over its rows that runs from
    one learned boundary to the next says how much of each coordinate belongs to which variable; the temperature of its
    edges falls while it is fitted, and the alignment found has sharp ones. Variables at different sites have a
    rotation at each.

    The network is frozen: it is no submodule, gets no gradients and keeps its mode. So the search is a small module of
    its own, which `fit` trains, or a `transformers.Trainer` (`model=search, data_collator=search.collator`), or any
    loop over `search(**search.collator(items))["loss"]`. With one order of items, Adam without weight decay and
    without clipping, and a learning rate that falls linearly, all of them find the same.

    Args:
        model: any module; a language model in `Answers`.
        causal_model: what it is thought to compute.
        site: where, for all variables; or variable → site. Neither units, mask nor space.
        variables: variable → dimension; or names alone, whose dimensions are learned.
        encode: rows → a batch; rows are inputs of the causal model, or what an `InterchangeDataset` holds (`PadRows`).
        loss: (output, labels) → scalar, e.g. `class_loss`, or one's own.
        seed: of the start.
        example: a row to see the sites' widths on; needed where rows are not inputs of the causal model, or these may
            have any value.
        directions: None: R is learned. `"neurons"`, or orthonormal rows `[directions, hidden]` such as principal
            components (`Pca.fit(hidden, width).rotation.matrix`): these stay, and which of them are a variable's is
            learned by a mask.

    Attributes:
        boundary_weight: of the penalty, the share of coordinates that the variables take; with boundaries only.

    Raises:
        CausalModelError, SiteError: unknown variables, dimensions that a site does not have, a site with a space, a
            variable without a site, two sites that share vectors.
    """

    def __init__(
        self,
        model: nn.Module,
        causal_model: CausalModel,
        site: Site | Mapping[str, Site],
        variables: Mapping[str, int] | Sequence[str],
        *,
        encode: Encode,
        loss: Loss,
        seed: int,
        example: Values | None = None,
        directions: Literal["neurons"] | Tensor | None = None,
    ) -> None:
        super().__init__()
        self._base = (model,)  # in a tuple, so that it is no submodule
        self.causal_model: CausalModel = causal_model
        self.site: Site | Mapping[str, Site] = site
        self.encode: Encode = encode
        self.loss: Loss = loss
        for name in variables:
            causal_model.descendants(name)  # refuses what is no variable
        self.variables: tuple[str, ...] = tuple(variables)
        self.dimensions: dict[str, int] | None = dict(variables) if isinstance(variables, Mapping) else None
        self.boundary_weight: float = 1.0
        self.example: Values | None = example
        self.directions: Literal["neurons"] | Tensor | None = directions
        probe = moved(probe_batch(causal_model, encode, example), device_of(model))
        self.places: nn.ModuleList = nn.ModuleList()
        with evaluating(model), torch.no_grad():
            for where, names in by_site(site, variables):
                hidden = collect(model, probe, replace(where, units=None, mask=None, space=None))
                self.places.append(_place(where, names, hidden, directions))
            self.reset(seed)
            wholes = {str(index): place.whole() for index, place in enumerate(self._places)}
            interchange(model, probe, dict.fromkeys(wholes, probe), wholes)  # refuses sites that share vectors

    def like(
        self, model: nn.Module, *, seed: int, directions: Literal["neurons"] | Tensor | None = None
    ) -> AlignmentSearch:
        """The same search in another network, from a seed, with other directions.

        Args:
            model: of the same shape.
            seed: of the start.
            directions: as in the class: None, `"neurons"`, or rows `[directions, hidden]`.

        Returns:
            The search, not fitted yet.
        """
        return AlignmentSearch(
            model,
            self.causal_model,
            self.site,
            self.variables if self.dimensions is None else self.dimensions,
            encode=self.encode,
            loss=self.loss,
            seed=seed,
            example=self.example,
            directions=directions,
        )

    def calibrate(
        self,
        pairs: Sequence[Pair] | InterchangeDataset,
        held_out: Sequence[Pair] | InterchangeDataset,
        *,
        decode: Decode,
        steps: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        nulls: Nulls | int = FEWEST,
        untrained: Untrained | None = None,
        alpha: float = 0.05,
    ) -> Calibration:
        """Fit anew, and say what the accuracy is worth; see `Calibration` and `over_sites`.

        The nulls are the same search in networks before training, at least 100 of them. They belong to the kind of
        network, the site and the settings, and serve every search that has these: pass `nulls=calibration.nulls` on.
        A search then costs itself and one of the same length for the neurons.

        Args:
            pairs: fitted on.
            held_out: other pairs, on which everything is measured.
            decode: as in `accuracy`.
            steps: as in `fit`.
            learning_rate: as in `fit`.
            batch_size: as in `fit`.
            seed: as in `fit`.
            nulls: of another calibration, or how many to make.
            untrained: a seed → such a network; None: `untrained_like`.
            alpha: the largest share of false discoveries.

        Returns:
            The accuracy beside what shows nothing.

        Raises:
            CausalModelError: fewer than 100 nulls, or nulls of another search.

        Warns:
            CalibrationWarning: a rotation that was trained does worse than single neurons.
        """
        settings = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
        return calibrated(
            self,
            self.dataset(pairs),
            self.dataset(held_out),
            decode=decode,
            settings=settings,
            seed=seed,
            nulls=nulls,
            untrained=untrained,
            alpha=alpha,
        )

    def reset(self, seed: int) -> None:
        """Start anew from a seed, as if nothing had been fitted.

        Args:
            seed: of the start.
        """
        generator = torch.Generator().manual_seed(seed)
        for place in self._places:
            place.reset(generator)

    @property
    def collator(self) -> InterchangeCollator:
        """Items of an `InterchangeDataset` → the keywords of `forward`."""
        return InterchangeCollator(self.encode)

    def dataset(self, pairs: Sequence[Pair] | InterchangeDataset) -> InterchangeDataset:
        """The pairs with their labels.

        Args:
            pairs: from `sample_pairs` and the like; a dataset is checked and given back.

        Returns:
            The dataset.

        Raises:
            CausalModelError: no pairs, or one that exchanges a variable that is not searched.
        """
        data = (
            pairs if isinstance(pairs, InterchangeDataset) else InterchangeDataset.from_pairs(self.causal_model, pairs)
        )
        check_searched(data, self.variables)
        return data

    def forward(
        self, base: Any, sources: Mapping[str, Any], exchanged: Mapping[str, Tensor], labels: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The loss of a batch: what the network gives under interchange against the causal model's labels.

        Args:
            base: a batch.
            sources: variable → batch of the same size.
            exchanged: variable → bool `[batch]`, which rows exchange it; the others keep the base's value.
            labels: of the rows.

        Returns:
            `{"loss": scalar}`, with the penalty on boundaries.
        """
        model = self._base[0]
        device = device_of(model)
        base, sources = moved(base, device), moved(dict(sources), device)
        sites = {name: place.site for place in self._places for name in place.variables}
        for place in self._places:
            sites.update(place.soft_sites(exchanged, device))
        with frozen(model):
            with torch.no_grad():
                views = source_views(model, sources, sites)
            edits = [Edit(sites[name], source=view) for name, view in views.items()]
            output, _ = run(model, base, edits=edits, known=list(sites.values()))
        loss = measured(self.loss, output, labels)
        for place in self._places:
            if place.boundaries is not None:
                loss = loss + self.boundary_weight * place.boundaries.clamp(0, 1).sum().to(loss.device)
        return {"loss": loss}

    def anneal(self, done: float, temperatures: tuple[float, float] | None = None) -> None:
        """Set the temperature of the boundaries' edges, which falls exponentially.

        Args:
            done: the share of the steps that is done, 0 to 1.
            temperatures: first and last, in coordinates; None: an eighth of the hidden size, then 0.1.
        """
        for place in self._places:
            first, last = temperatures or (max(place.hidden / 8, 0.1), 0.1)
            place.temperature = first * (last / first) ** done

    def fit(
        self,
        pairs: Sequence[Pair] | InterchangeDataset,
        *,
        steps: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        boundary_weight: float | None = None,
        temperatures: tuple[float, float] | None = None,
        validation: Sequence[Pair] | InterchangeDataset | None = None,
        decode: Decode | None = None,
        restarts: int = 0,
        enough: float = 0.995,
    ) -> list[float]:
        """Adam on X and the boundaries; the loss of every step of the start that is kept.

        Args:
            pairs: or a dataset; each once in every epoch.
            steps: of the optimiser, for each start.
            learning_rate: of Adam; falls linearly to zero.
            batch_size: pairs per step.
            seed: of the order of the pairs, and of further starts.
            boundary_weight: sets the attribute; None leaves it.
            temperatures: see `anneal`.
            validation: other pairs, which decide between starts.
            decode: the network's output → values of the causal model's output, for the validation.
            restarts: how many further starts may be tried, as long as the validation's accuracy is below `enough`;
                the best start is kept.
            enough: 0 to 1.

        Returns:
            The losses of the start that is kept, one for each step.

        Raises:
            CausalModelError: no pairs, a variable of a pair that is not searched, no steps, restarts without
                validation.
        """
        if boundary_weight is not None:
            self.boundary_weight = boundary_weight
        return fit(
            self,
            self.dataset(pairs),
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            temperatures=temperatures,
            validation=None if validation is None else self.dataset(validation),
            decode=decode,
            restarts=restarts,
            enough=enough,
        )


def _place(
    where: Site,
    names: Mapping[str, int] | list[str],
    hidden: Tensor,
    directions: Literal["neurons"] | Tensor | None,
) -> RotatedSite:
    width, device = hidden.shape[-1], hidden.device
    if directions is None:
        return RotatedSite(where, names, hidden=width, device=device)
    rows = directions if isinstance(directions, Tensor) else None
    return MaskedSite(where, names, hidden=width, device=device, directions=rows)
