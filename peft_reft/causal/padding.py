"""Tokenised rows of different lengths → a batch, padded left or right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

__all__ = ["PadRows"]

_FILL = {"attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "prompt_mask": 0, "labels": -100}


@dataclass(frozen=True)
class PadRows:
    """Pads what runs along a sequence (`input_ids`, `attention_mask`, `position_ids`, `labels`) and stacks the rest.

    The rest is one number or one list of k numbers in each row, such as the positions of a `Column`: they count among
    real tokens, so the side of the padding does not matter to them.

    Args:
        pad_token_id: fills `input_ids`.
        padding_side: where the padding goes.

    Raises:
        ConfigError: another side, no rows, a row without `input_ids` or with other keys than the first, a key that is
            not as long as its `input_ids` or cannot be stacked.

    >>> batch = PadRows(0, padding_side="left")([{"input_ids": [5, 6]}, {"input_ids": [7]}])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """

    pad_token_id: int
    padding_side: Literal["left", "right"]

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise ConfigError(
                f"padding_side={self.padding_side!r}", value=self.padding_side, rule="it is 'left' or 'right'"
            )
        if isinstance(self.pad_token_id, bool) or not isinstance(self.pad_token_id, int):
            raise ConfigError(
                f"pad_token_id={self.pad_token_id!r}",
                value=self.pad_token_id,
                rule="an int: any id will do where the attention mask is 0, e.g. the end-of-sequence token's",
            )

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """`[batch, longest]` of each key along the sequence, `[batch]` or `[batch, k]` of the others."""
        listed = [self._row(place, row) for place, row in enumerate(rows)]
        if not listed:
            raise ConfigError("no rows", value=[], rule="one or more")
        for place, row in enumerate(listed):
            if set(row) != set(listed[0]):
                raise ConfigError(
                    f"row {place} has the keys {sorted(row)}",
                    value=sorted(row),
                    rule=f"every row has those of the first: {sorted(listed[0])}",
                )
        fills = {"input_ids": self.pad_token_id, **_FILL}
        return {
            name: self._padded([row[name] for row in listed], fills[name])
            if name in fills
            else _stacked(name, [row[name] for row in listed])
            for name in listed[0]
        }

    def _row(self, place: int, row: Any) -> dict[str, Tensor]:
        if not isinstance(row, Mapping) or "input_ids" not in row:
            raise ConfigError(
                f"row {place} is {type(row).__name__} without input_ids",
                value=type(row).__name__,
                rule="a tokenised row is a mapping with input_ids",
            )
        tensors = {name: torch.as_tensor(value) for name, value in row.items()}
        tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
        for name in ("input_ids", *_FILL):
            if name in tensors and (tensors[name].dim() != 1 or len(tensors[name]) != len(tensors["input_ids"])):
                raise ConfigError(
                    f"row {place}: {name} has shape {list(tensors[name].shape)}",
                    value=list(tensors[name].shape),
                    rule=f"one number for each token, [{tensors['input_ids'].shape[-1]}]",
                    fix="tokenise one prompt at a time, without return_tensors",
                )
        return tensors

    def _padded(self, values: list[Tensor], fill: int) -> Tensor:
        longest = max(len(value) for value in values)
        batch = values[0].new_full((len(values), longest), fill)
        for row, value in enumerate(values):
            start = longest - len(value) if self.padding_side == "left" else 0
            batch[row, start : start + len(value)] = value
        return batch


def _stacked(name: str, values: list[Tensor]) -> Tensor:
    if len({value.shape for value in values}) != 1:
        raise ConfigError(
            f"{name}: rows have the shapes {sorted({tuple(value.shape) for value in values})}",
            value=name,
            rule="what does not run along the sequence has the same shape in every row",
        )
    return torch.stack(values)
