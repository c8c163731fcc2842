"""Positions that examples carry as columns → tensors of the batch.

Columns count from the first real token of their own example. Where the wrapped collator pads on the left, or puts
several examples one behind the other into one row, they are shifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError
from peft_reft.runtime.inputs import EXPLICIT

__all__ = ["Slots", "merge_locations", "merge_masks", "slots_of", "split_columns"]


@dataclass(frozen=True)
class Slots:
    """Where an example stands in the batch: its row, the column of its first real token, how many it has."""

    row: int
    first: int
    length: int


def split_columns(examples: Sequence[Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Examples without explicit positions, and name → one value per example.

    Raises:
        LocationError: only some of the examples have a column.
    """
    if not all(isinstance(example, Mapping) for example in examples):
        return list(examples), {}
    columns = {name: [example[name] for example in examples if _has(example, name)] for name in EXPLICIT}
    for name, values in columns.items():
        if values and len(values) != len(examples):
            raise LocationError(
                f"{len(values)} of the {len(examples)} examples of a batch have {name}",
                rule="all examples of a batch state their positions, or none does",
            )
    if {"prompt_mask", "prompt_lengths"} <= {name for name, values in columns.items() if values}:
        raise LocationError("examples have prompt_mask and prompt_lengths", rule="one of them says what is prompt")
    rest = [{name: value for name, value in example.items() if name not in EXPLICIT} for example in examples]
    return rest, {name: values for name, values in columns.items() if values}


def slots_of(examples: Sequence[Mapping[str, Any]], real: Tensor, *, masked: bool) -> list[Slots]:
    """Where each example stands in a batch.

    Args:
        examples: as they were collated.
        real: the batch's real tokens, bool `[batch, seq]`.
        masked: whether the batch has an attention mask; without one a row may be padded and not say so.

    Raises:
        LocationError: the batch has neither one row per example nor one row for all.
    """
    rows = real.shape[0]
    if rows == len(examples) and (masked or not all("input_ids" in example for example in examples)):
        first = real.long().argmax(1).tolist()
        return [Slots(row, first[row], int(real[row].sum())) for row in range(rows)]
    if rows == len(examples):
        return [Slots(row, 0, len(example["input_ids"])) for row, example in enumerate(examples)]
    if rows != 1 or not all("input_ids" in example for example in examples):
        raise LocationError(
            f"{len(examples)} examples were collated to {rows} rows",
            rule="examples with positions become one row each, or one row together",
        )
    lengths = [len(example["input_ids"]) for example in examples]
    return [Slots(0, sum(lengths[:number]), length) for number, length in enumerate(lengths)]


def merge_masks(columns: Mapping[str, Sequence[Any]], slots: Sequence[Slots], like: Tensor) -> Tensor | None:
    """`prompt_mask`, long `[batch, seq]` as `like`, from the examples' `prompt_mask` or `prompt_lengths`; or None.

    Raises:
        LocationError: a mask of another length than its example.
    """
    if "prompt_mask" not in columns and "prompt_lengths" not in columns:
        return None
    merged = torch.zeros(like.shape, dtype=torch.long, device=like.device)
    for number, slot in enumerate(slots):
        mask = _mask(columns, number, slot)
        if mask.shape != (slot.length,):
            raise LocationError(
                f"the prompt_mask of an example has shape {list(mask.shape)}, its tokens are {slot.length}",
                value=list(mask.shape),
                rule="it has one entry per real token",
                fix="cut it wherever its tokens are cut (truncation), and leave padding to the collator",
            )
        merged[slot.row, slot.first : slot.first + slot.length] = (mask != 0).long().to(like.device)
    return merged


def merge_locations(values: Sequence[Any], slots: Sequence[Slots], like: Tensor) -> Any:
    """`intervention_locations`, long `[batch, terms, k]` padded with −1, from one `[terms, k]` per example.

    A dict adapter name → `[terms, k]` gives a dict of such tensors.

    Raises:
        LocationError: not `[terms, k]` integers, unequal terms, or an index outside of the example.
    """
    if isinstance(values[0], Mapping):
        names = [sorted(map(str, value)) if isinstance(value, Mapping) else None for value in values]
        if not values[0] or any(each != names[0] for each in names):
            raise LocationError(
                f"the intervention_locations of a batch's examples are of the adapters {names}",
                value=names,
                rule="all examples name the same adapters, one or more",
            )
        return {name: merge_locations([value[name] for value in values], slots, like) for name in values[0]}
    tables = [_table(value, slot) for value, slot in zip(values, slots, strict=True)]
    if len({table.shape[0] for table in tables}) != 1:
        raise LocationError(
            f"examples have {sorted({table.shape[0] for table in tables})} terms of intervention_locations",
            rule="all examples state the same terms: one if tied, else one per term of the positions",
        )
    rows = [
        torch.cat([table for table, slot in zip(tables, slots, strict=True) if slot.row == row], 1)
        for row in range(like.shape[0])
    ]
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=-1) for row in rows]
    return torch.stack(padded).to(like.device)


def _has(example: Mapping[str, Any], name: str) -> bool:
    return example.get(name) is not None


def _mask(columns: Mapping[str, Sequence[Any]], number: int, slot: Slots) -> Tensor:
    if "prompt_mask" in columns:
        mask = _integers(columns["prompt_mask"][number], "prompt_mask", "one 0 or 1 per real token, 1 for the prompt")
        if bool(((mask != 0) & (mask != 1)).any()):
            wrong = int(mask[(mask != 0) & (mask != 1)].reshape(-1)[0])
            raise LocationError(
                f"the prompt_mask of an example holds {wrong}",
                value=wrong,
                rule="it is 1 on the prompt and 0 elsewhere",
                fix="labels are no mask: the prompt is where they are -100 before the first that is not",
            )
        return mask
    value = columns["prompt_lengths"][number]
    length = _integers(value, "prompt_lengths", "one number of real tokens")
    if length.dim() or length.dtype == torch.bool or not 0 <= int(length) <= slot.length:
        raise LocationError(
            f"prompt_lengths says {repr(value)[:80]}",
            value=value,
            rule=f"it counts real tokens, and the example has {slot.length}",
        )
    return (torch.arange(slot.length) < int(length)).long()


def _integers(value: Any, name: str, rule: str) -> Tensor:
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise LocationError(f"the {name} of an example is {repr(value)[:80]}", value=value, rule=rule) from error
    if found.is_floating_point() or found.is_complex():
        shown = repr(value)[:80]
        raise LocationError(f"the {name} of an example is {shown} ({found.dtype})", value=value, rule=rule)
    return found


def _table(value: Any, slot: Slots) -> Tensor:
    """One example's `[terms, k]`, moved to the columns of its row."""
    if isinstance(value, (list, tuple)) and all(isinstance(term, (list, tuple)) for term in value):
        widest = max(map(len, value), default=0)
        value = [[*term, *[-1] * (widest - len(term))] for term in value]
    table = _integers(
        value, "intervention_locations", "integers [terms, k], counted from its first real token, −1 for none"
    )
    if table.dim() != 2 or table.dtype == torch.bool:
        raise LocationError(
            f"the intervention_locations of an example have shape {list(table.shape)} and dtype {table.dtype}",
            value=list(table.shape),
            rule="they are integers [terms, k], counted from its first real token, −1 for none",
        )
    table = table.long()
    if bool(((table < -1) | (table >= slot.length)).any()):
        wrong = int(table[(table < -1) | (table >= slot.length)][0])
        raise LocationError(
            f"the intervention_locations of an example name position {wrong}",
            value=wrong,
            rule=f"positions run from 0 to {slot.length - 1}, and −1 means none",
        )
    return torch.where(table < 0, table, table + slot.first)
