"""What an alignment search has found: rotations, rows, sites, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from .accuracy import Accuracy, Decode, interchange_accuracy
from .adapter import to_adapter
from .dataset import Encode, InterchangeDataset
from .model import CausalModel, Values
from .pairs import Pair
from .places import the_only
from .rotated import RotatedSite
from .site import Site

__all__ = ["Found"]


class Found(nn.Module):
    """The places of a search, and the alignment that they are now.

    Attributes:
        causal_model, encode, variables: as the search was given them.
        places: a `RotatedSite` each.
    """

    causal_model: CausalModel
    encode: Encode
    variables: tuple[str, ...]
    places: nn.ModuleList
    _base: tuple[nn.Module]

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

    def units(self) -> dict[str, range]:
        """Variable → its rows of R.

        Raises:
            CausalModelError: the learned boundaries of a variable enclose none.
        """
        found = {name: rows for place in self._places for name, rows in place.units().items()}
        return {name: found[name] for name in self.variables}

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
