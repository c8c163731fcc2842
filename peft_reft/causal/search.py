"""`AlignmentSearch`: learn where in a network the variables of a causal model are (distributed alignment search)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_reft.runtime.evaluating import device_of, evaluating

from .accuracy import Accuracy, Decode, interchange_accuracy
from .adapter import to_adapter
from .dataset import Encode, InterchangeCollator, InterchangeDataset
from .edits import Edit
from .fitting import fit
from .frozen import frozen, moved
from .interchange import collect, interchange, source_views
from .losses import Loss, measured
from .model import CausalModel, Values
from .pairs import Pair
from .passes import run
from .places import by_site, check_searched, probe_batch, the_only
from .rotated import RotatedSite
from .site import Site

__all__ = ["AlignmentSearch"]


class AlignmentSearch(nn.Module):
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
    ) -> None:
        super().__init__()
        self._base = (model,)  # in a tuple, so that it is no submodule
        self.causal_model, self.site, self.encode, self.loss = causal_model, site, encode, loss
        for name in variables:
            causal_model.descendants(name)  # refuses what is no variable
        self.variables = tuple(variables)
        self.dimensions = dict(variables) if isinstance(variables, Mapping) else None
        self.boundary_weight = 1.0
        probe = moved(probe_batch(causal_model, encode, example), device_of(model))
        self.places = nn.ModuleList()
        with evaluating(model), torch.no_grad():
            for where, names in by_site(site, variables):
                hidden = collect(model, probe, replace(where, units=None, mask=None, space=None))
                self.places.append(RotatedSite(where, names, hidden=hidden.shape[-1], device=hidden.device))
            self.reset(seed)
            wholes = {str(index): place.whole() for index, place in enumerate(self._places)}
            interchange(model, probe, dict.fromkeys(wholes, probe), wholes)  # refuses sites that share vectors

    def reset(self, seed: int) -> None:
        """Start anew from a seed, as if nothing had been fitted."""
        generator = torch.Generator().manual_seed(seed)
        for place in self._places:
            place.reset(generator)

    @property
    def rotation(self) -> Tensor:
        """R `[rank, hidden]` of the one site.

        Raises:
            CausalModelError: there are several; see `rotations`.
        """
        return self._only.rotation

    @property
    def rotations(self) -> dict[str, Tensor]:
        """Variable → R `[rank, hidden]` of its site; its own rows are `units()`."""
        return {name: place.rotation for place in self._places for name in place.variables}

    @property
    def raw(self) -> nn.Parameter:
        """X `[rank, hidden]` of the one site."""
        return self._only.raw

    @property
    def boundaries(self) -> nn.Parameter | None:
        """`[variables]` of the one site, each one's share of the hidden size; None where dimensions are given."""
        return self._only.boundaries

    @property
    def alignment(self) -> dict[str, Site]:
        """Variable → site in R, for `interchange`, `interchange_accuracy` and `collect`.

        Raises:
            CausalModelError: the learned boundaries of a variable enclose no coordinate.
        """
        found = {name: where for place in self._places for name, where in place.sites().items()}
        return {name: found[name] for name in self.variables}

    @property
    def collator(self) -> InterchangeCollator:
        """Items of an `InterchangeDataset` → the keywords of `forward`."""
        return InterchangeCollator(self.encode)

    def units(self) -> dict[str, range]:
        """Variable → its rows of R.

        Raises:
            CausalModelError: the learned boundaries of a variable enclose none.
        """
        found = {name: rows for place in self._places for name, rows in place.units().items()}
        return {name: found[name] for name in self.variables}

    def dataset(self, pairs: Sequence[Pair] | InterchangeDataset) -> InterchangeDataset:
        """The pairs with their labels.

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
            first, last = temperatures or (max(place.raw.shape[1] / 8, 0.1), 0.1)
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

    def accuracy(
        self, pairs: Sequence[Pair] | InterchangeDataset, *, decode: Decode, batch_size: int = 256
    ) -> Accuracy:
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

    def to_adapter(
        self,
        *,
        inputs: Iterable[Values] | None = None,
        row: Callable[[Values], Any] | None = None,
        positions: str | None = None,
        label: Callable[[Any], str | float | bool] | None = None,
        adapter_name: str = "default",
        batch_size: int = 256,
    ) -> PeftModel:
        """The network with an adapter that sets the variables found; see `peft_reft.causal.to_adapter`."""
        return to_adapter(
            self._base[0],
            self.causal_model,
            self.alignment,
            encode=self.encode,
            inputs=inputs,
            row=row,
            positions=positions,
            label=label,
            adapter_name=adapter_name,
            batch_size=batch_size,
        )

    @property
    def _places(self) -> list[RotatedSite]:
        return [place for place in self.places if isinstance(place, RotatedSite)]

    @property
    def _only(self) -> RotatedSite:
        return the_only(self._places)
