"""Columns of tokenised examples → tensors, after their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PromptBoundaryError, shown
from peft_reft.positions import sequence_starts
from peft_reft.runtime.inputs import Explicit

__all__ = ["WholeRow", "extent", "is_batch", "labels_of", "refuse_packed", "rows_of", "stated_prompt", "vector"]

WholeRow = Literal["all"]
STATED = ("prompt_mask", "prompt_lengths")
MASKS = ("completion_mask", "assistant_masks")
COLUMNS = ("input_ids", "attention_mask", "labels", *MASKS, *STATED, "position_ids", "seq_lengths")
"""What is read of an example. `MASKS` are TRL's: 1 on tokens that will be supervised."""


def is_batch(example: Mapping[str, Any]) -> bool:
    """Whether an example is many: `datasets.map(batched=True)` passes every column as a list of rows.

    Raises:
        LocationError: there are no tokens.
    """
    if not isinstance(example, Mapping):
        raise LocationError(
            f"the example is a {type(example).__name__}",
            value=type(example).__name__,
            rule="it is a dict of columns, input_ids among them",
        )
    ids = example.get("input_ids")
    if ids is None or not hasattr(ids, "__len__") or len(ids) == 0:
        raise LocationError(
            f"the example has no tokens; it has: {', '.join(map(str, example)) or 'nothing'}",
            rule="positions are counted among the tokens of the column input_ids",
            fix="tokenise the data first, and leave empty rows out",
        )
    return hasattr(ids[0], "__len__") and getattr(ids[0], "ndim", 1) > 0


def rows_of(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch, each with the columns that are read; a single example is one row."""
    several = is_batch(example)
    columns = {name: example[name] for name in COLUMNS if name in example and example[name] is not None}
    if not several:
        return [columns]
    return [
        {name: values[number] for name, values in columns.items() if values[number] is not None}
        for number in range(len(columns["input_ids"]))
    ]


def vector(columns: Mapping[str, Any], name: str, width: int | None = None) -> Tensor:
    """A column as long `[columns]`, after the check that it has one integer per token."""
    values = torch.as_tensor(columns[name])
    values = values if values.numel() else values.long()
    if values.dim() != 1 or values.is_floating_point() or (width is not None and len(values) != width):
        raise LocationError(
            f"{name} has shape {list(values.shape)} and dtype {values.dtype}",
            value=list(values.shape),
            rule="it is one integer per token" + ("" if width is None else f", and the example has {width}"),
        )
    return values.long()


def extent(real: Tensor) -> tuple[int, int]:
    """The column of the first real token, and how many there are; they stand together."""
    columns = real.nonzero().squeeze(1)
    if len(columns) == 0:
        raise LocationError("an example is all padding", rule="an example has a real token", fix="leave it out")
    first, length = int(columns[0]), len(columns)
    if int(columns[-1]) - first + 1 != length:
        raise LocationError(
            "the attention_mask of an example has zeros between its ones",
            rule="padding stands at the ends of a row, so that positions can be counted from its first real token",
        )
    return first, length


def refuse_packed(columns: Mapping[str, Any], real: Tensor) -> None:
    """Refuse a row of several documents, which `seq_lengths` or `position_ids` tell."""
    several = "seq_lengths" in columns and len(columns["seq_lengths"]) > 1
    if "position_ids" in columns:
        starts = sequence_starts(real[None], vector(columns, "position_ids", len(real))[None])[0]
        several = several or bool((starts[real] != starts[real][0]).any())
    if several:
        raise LocationError(
            "a row holds several packed documents",
            rule="positions are added to single examples",
            fix="add them before packing; or leave them out, a packed row's own labels say where its prompts end",
        )


def labels_of(columns: Mapping[str, Any], ids: Tensor, real: Tensor, prompt: WholeRow | None) -> Tensor | None:
    """Labels `[columns]`, from TRL's masks where there are no labels yet."""
    masks = [vector(columns, name, len(ids)) != 0 for name in MASKS if name in columns]
    if "labels" in columns:
        labels = torch.as_tensor(columns["labels"])
        if labels.shape != ids.shape:
            if prompt == "all" and labels.dim() == 0:
                return None  # a class
            raise PromptBoundaryError(
                f"the labels of an example have shape {list(labels.shape)}, its tokens are {len(ids)}",
                code="positions.labels",
                value=list(labels.shape),
                rule="labels that tell a prompt from an answer have one entry per token",
                fix="pass config with its task_type: without a completion, every real token is prompt",
            )
    elif masks:
        labels = torch.where(torch.stack(masks).all(0), ids, -100)
    else:
        return None
    if prompt == "all" and bool(((labels != -100) & real).any()):
        raise PromptBoundaryError(
            "prompt='all' is said of a row whose labels supervise an answer",
            code="positions.labels",
            rule="a row that is all prompt has no label but -100",
            fix="leave prompt out: the labels say where it ends; or remove the column",
        )
    return labels


def stated_prompt(
    columns: Mapping[str, Any],
    prompt: WholeRow | None,
    prompt_length: int | None,
    *,
    first: int,
    length: int,
    width: int,
) -> Explicit:
    """What an example or the caller says of the prompt, as a forward would be told."""
    said = [name for name in STATED if name in columns]
    said += ["prompt_length"] if prompt_length is not None else []
    said += ["prompt='all'"] if prompt is not None else []
    if len(said) > 1:
        raise LocationError(f"an example has {' and '.join(said)}", rule="one of them says what is prompt")
    if "prompt_mask" in columns:
        mask = vector(columns, "prompt_mask")
        if len(mask) == length != width:  # one entry per real token, as a collator wants it
            mask = torch.nn.functional.pad(mask, (first, width - first - length))
        return Explicit(prompt_mask=mask[None])
    if prompt_length is not None and type(prompt_length) is not int:
        raise LocationError(
            f"prompt_length is {shown(prompt_length)}", value=prompt_length, rule="an int, of real tokens"
        )
    if "prompt_lengths" in columns:
        prompt_length = columns["prompt_lengths"]
    if prompt_length is None:
        return Explicit()
    return Explicit(prompt_lengths=torch.as_tensor(prompt_length).reshape(1))
