"""Interchanges with their counterfactual labels as a torch dataset, and the collator that batches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_reft.hub_format.errors import CausalModelError

from .inputs import Inputs
from .model import CausalModel, Values
from .pairs import Pair

__all__ = ["Encode", "InterchangeCollator", "InterchangeDataset", "exchanged_of"]

Encode = Callable[[Sequence[Any]], Inputs]
"""Rows (inputs of the causal model, or tokenised prompts) → a batch for the network."""

_KEYS = ("base", "sources", "label", "base_label")


class InterchangeDataset(Dataset[dict[str, Any]]):
    """Base, sources and the label that a causal model gives under their interchange.

    A row (`base`, and each of `sources`) is what `encode` makes batches of: the causal model's inputs, or a tokenised
    prompt, `{"input_ids": [...], "attention_mask": [...], ...}` without padding.

    Args:
        items: each `{"base": row, "sources": {variable: row}, "label": value, "base_label": value}`; labels are values
            of the output, or `Distribution`s. `base_label` is the output without an interchange. A source that is None
            is no source.

    Raises:
        CausalModelError: no items, or one without these keys or without a source.

    >>> both = CausalModel({"V": lambda P, Q: P and Q}, inputs={"P": (False, True), "Q": (False, True)})
    >>> pair = Pair({"P": True, "Q": False}, {"Q": {"P": False, "Q": True}})
    >>> InterchangeDataset.from_pairs(both, [pair])[0]["label"]
    True
    """

    def __init__(self, items: Iterable[Mapping[str, Any]]) -> None:
        self.items: list[dict[str, Any]] = [_checked(place, item) for place, item in enumerate(items)]
        if not self.items:
            raise CausalModelError("0 pairs", code="causal.pairs", value=[], rule="one or more")

    @classmethod
    def from_pairs(
        cls, causal_model: CausalModel, pairs: Iterable[Pair], *, row: Callable[[Values], Any] | None = None
    ) -> InterchangeDataset:
        """The pairs (from `every_pair`, `sample_pairs`), each with its labels.

        Args:
            causal_model: gives the labels.
            pairs: base and source inputs.
            row: inputs → row, e.g. `lambda values: tokenizer(f"{values['X']} + {values['Y']} =")`; None keeps them.

        Returns:
            The dataset, in the order of the pairs.

        Raises:
            CausalModelError: no pairs, or inputs that the causal model does not take.
        """
        made = (lambda values: values) if row is None else row
        return cls(
            {
                "base": made(pair.base),
                "sources": {name: made(source) for name, source in pair.sources.items()},
                "label": pair.label(causal_model),
                "base_label": causal_model.run(pair.base)[causal_model.output],
            }
            for pair in pairs
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """Those that some item exchanges, in the order in which they come."""
        return tuple(dict.fromkeys(name for item in self.items for name in exchanged_of(item)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.items)


@dataclass(frozen=True)
class InterchangeCollator:
    """Items → the keywords of `AlignmentSearch.forward`, for its own loop, a `DataLoader` or a `Trainer`.

    A batch holds `base`; `sources`, variable → batch, in which a row that does not exchange the variable repeats its
    base; `exchanged`, variable → bool `[batch]`; and `labels`, a list.

    Args:
        encode: list of rows → a batch for the network: `PadRows` for tokenised ones.
    """

    encode: Encode

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch some items."""
        sources: dict[str, Inputs] = {}
        exchanged: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for item in items for name in exchanged_of(item)):
            has = [name in exchanged_of(item) for item in items]
            rows = [item["sources"][name] if given else item["base"] for item, given in zip(items, has, strict=True)]
            sources[name], exchanged[name] = self.encode(rows), torch.tensor(has)
        return {
            "base": self.encode([item["base"] for item in items]),
            "sources": sources,
            "exchanged": exchanged,
            "labels": [item["label"] for item in items],
        }


def exchanged_of(item: Mapping[str, Any]) -> list[str]:
    """The variables that an item exchanges."""
    return [name for name, source in item["sources"].items() if source is not None]


def _checked(place: int, item: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(item, Mapping) or set(item) != set(_KEYS) or not isinstance(item["sources"], Mapping):
        shown = sorted(item) if isinstance(item, Mapping) else type(item).__name__
        raise CausalModelError(
            f"item {place}: {shown}",
            code="causal.item",
            value=shown,
            rule=f"an item has the keys {', '.join(_KEYS)}; sources is variable → row",
        )
    if not exchanged_of(item):
        raise CausalModelError(
            f"item {place} has no source", code="causal.item", value=place, rule="an item exchanges a variable or more"
        )
    return dict(item)
