"""A tokenised example → the call that a forward would get with it, and where its prompt ends.

Nothing here knows the grammar: what a spec edits in a row is asked of the functions that a forward asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError
from peft_reft.positions import Layout, sequence_starts
from peft_reft.runtime.adapters import AdapterView
from peft_reft.runtime.inputs import CallInputs, Explicit, call_inputs
from peft_reft.runtime.resolve import Situation, call_layout, unit_masks

__all__ = ["COLUMNS", "Row", "WholeRow", "is_batch", "read_row", "rows_of"]

WholeRow = Literal["all"]
STATED = ("prompt_mask", "prompt_lengths")
MASKS = ("completion_mask", "assistant_masks")
COLUMNS = ("input_ids", "attention_mask", "labels", *MASKS, *STATED, "position_ids", "seq_lengths")
"""What is read of an example. `MASKS` are TRL's: 1 on tokens that will be supervised."""


@dataclass(frozen=True)
class Row:
    """One example as a batch of one.

    Attributes:
        call: what the forward would be called with.
        situation: what is known beside it.
        first: the column of its first real token.
        length: how many real tokens it has.
        knows_prompt: whether anything says where the prompt ends.
    """

    call: CallInputs
    situation: Situation
    first: int
    length: int
    knows_prompt: bool

    def layout(self) -> Layout:
        """The row's real tokens and prompt, `[1, columns]`."""
        return call_layout(self.call, self.situation)

    def prompt_stop(self) -> int:
        """The column after the last token of the prompt.

        Raises:
            PromptBoundaryError: nothing says where the prompt ends.
        """
        if not self.knows_prompt:
            raise _no_boundary("the position after the prompt is asked for")
        return self.first + int(self.layout().prompt.sum())

    def edited(self, view: AdapterView) -> list[list[int]]:
        """For each unit of an adapter the tokens that it edits, counted from the first real token.

        Raises:
            PromptBoundaryError: the positions depend on where the prompt ends, and nothing says where.
            LocationError: stated positions that do not fit the row.
        """
        if view.needs_prompt_end and not self.knows_prompt and self.situation.explicit.locations is None:
            raise _no_boundary(f"positions {', '.join(repr(str(group.positions)) for group in view.groups)}")
        masks = unit_masks(self.call, [view], self.situation)
        return [
            (masks[view.name, unit].mask[0].nonzero().squeeze(1) - self.first).tolist() for unit in range(view.units)
        ]


def is_batch(example: Mapping[str, Any]) -> bool:
    """Whether an example is many: `datasets.map(batched=True)` passes every column as a list of rows.

    Raises:
        LocationError: there are no tokens.
    """
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
    columns = {name: example[name] for name in COLUMNS if name in example and example[name] is not None}
    if not is_batch(example):
        return [columns]
    return [
        {name: values[number] for name, values in columns.items() if values[number] is not None}
        for number in range(len(columns["input_ids"]))
    ]


def read_row(
    columns: Mapping[str, Any],
    *,
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
    no_answer: bool = False,
    locations: Tensor | None = None,
) -> Row:
    """Read one tokenised example.

    Args:
        columns: of the example, from `COLUMNS`.
        prompt: `"all"` says that the row holds a prompt and nothing else.
        prompt_length: real tokens of the prompt.
        no_answer: the task has none (classification, an encoder): all real tokens are prompt, whatever labels are.
        locations: stated positions, long `[1, terms, k]`, indices of columns.

    Raises:
        LocationError: columns of unequal length, a packed row, padding between real tokens, or two statements of what
            is prompt.
        PromptBoundaryError: the row is said to be all prompt, and its labels supervise an answer.
        ConfigError: another `prompt` than None or `"all"`.
    """
    if prompt not in (None, "all"):
        raise ConfigError(
            f"prompt={prompt!r}",
            value=prompt,
            rule="it is None, or 'all' where a row holds a prompt and nothing else",
            fix="say the length of a prompt with prompt_length",
        )
    ids = _vector(columns, "input_ids")
    width = len(ids)
    real = _vector(columns, "attention_mask", width) != 0 if "attention_mask" in columns else torch.ones(width).bool()
    first, length = _extent(real)
    _refuse_packed(columns, real)
    labels = None if no_answer else _labels(columns, ids, real, prompt)
    explicit = _stated(columns, prompt, prompt_length, first=first, length=length, width=width)
    call = call_inputs(
        {
            "input_ids": ids[None],
            "attention_mask": real.long()[None],
            "labels": None if labels is None else labels[None],
        },
        "only",
    )
    if call is None:
        raise LocationError("the example has no tokens", rule="input_ids is a list of ids")
    whole = no_answer or prompt == "all"
    situation = Situation(
        has_completion=not whole,
        explicit=Explicit(explicit.prompt_mask, explicit.prompt_lengths, locations),
    )
    knows = whole or labels is not None or bool(explicit)
    return Row(call, situation, first, length, knows)


def _vector(columns: Mapping[str, Any], name: str, width: int | None = None) -> Tensor:
    values = torch.as_tensor(columns[name])
    values = values if values.numel() else values.long()
    if values.dim() != 1 or values.is_floating_point() or (width is not None and len(values) != width):
        raise LocationError(
            f"{name} has shape {list(values.shape)} and dtype {values.dtype}",
            value=list(values.shape),
            rule="it is one integer per token" + ("" if width is None else f", and the example has {width}"),
        )
    return values.long()


def _extent(real: Tensor) -> tuple[int, int]:
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


def _refuse_packed(columns: Mapping[str, Any], real: Tensor) -> None:
    several = "seq_lengths" in columns and len(columns["seq_lengths"]) > 1
    if "position_ids" in columns:
        starts = sequence_starts(real[None], _vector(columns, "position_ids", len(real))[None])[0]
        several = several or bool((starts[real] != starts[real][0]).any())
    if several:
        raise LocationError(
            "a row holds several packed documents",
            rule="positions are added to single examples",
            fix="add them before packing; or leave them out, a packed row's own labels say where its prompts end",
        )


def _labels(columns: Mapping[str, Any], ids: Tensor, real: Tensor, prompt: WholeRow | None) -> Tensor | None:
    """Labels `[columns]`, from TRL's masks where there are no labels yet."""
    masks = [_vector(columns, name, len(ids)) != 0 for name in MASKS if name in columns]
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


def _stated(
    columns: Mapping[str, Any],
    prompt: WholeRow | None,
    prompt_length: int | None,
    *,
    first: int,
    length: int,
    width: int,
) -> Explicit:
    said = [name for name in STATED if name in columns]
    said += ["prompt_length"] if prompt_length is not None else []
    said += ["prompt='all'"] if prompt is not None else []
    if len(said) > 1:
        raise LocationError(f"an example has {' and '.join(said)}", rule="one of them says what is prompt")
    if "prompt_mask" in columns:
        mask = _vector(columns, "prompt_mask")
        if len(mask) == length != width:  # one entry per real token, as a collator wants it
            mask = torch.nn.functional.pad(mask, (first, width - first - length))
        return Explicit(prompt_mask=mask[None])
    if "prompt_lengths" in columns:
        prompt_length = columns["prompt_lengths"]
    if prompt_length is None:
        return Explicit()
    return Explicit(prompt_lengths=torch.as_tensor(prompt_length).reshape(1))


def _no_boundary(what: str) -> PromptBoundaryError:
    return PromptBoundaryError(
        f"{what}, and nothing says where the prompt of an example ends",
        code="positions.no_labels",
        rule="a prompt ends before the first label that is not -100, or where prompt_mask or prompt_lengths say",
        fix="give the examples labels, prompt_mask or prompt_lengths, or pass prompt_length; say prompt='all' if each "
        "row holds a prompt and nothing else",
    )
