"""A tokenised example → the call that a forward would get with it, and where its prompt ends.

Nothing here knows the grammar: what a spec edits in a row is asked of the functions that a forward asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError
from peft_reft.positions import Layout
from peft_reft.runtime.inputs import CallInputs, Explicit, call_inputs
from peft_reft.runtime.resolve import call_layout, unit_masks
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.views import AdapterView

from .example_columns import WholeRow, extent, labels_of, refuse_packed, stated_prompt, vector

__all__ = ["Row", "read_row"]


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
        return [(masks[0, unit].mask[0].nonzero().squeeze(1) - self.first).tolist() for unit in range(view.units)]


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
        columns: of the example.
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
    ids = vector(columns, "input_ids")
    width = len(ids)
    real = vector(columns, "attention_mask", width) != 0 if "attention_mask" in columns else torch.ones(width).bool()
    first, length = extent(real)
    refuse_packed(columns, real)
    labels = None if no_answer else labels_of(columns, ids, real, prompt)
    explicit = stated_prompt(columns, prompt, prompt_length, first=first, length=length, width=width)
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


def _no_boundary(what: str) -> PromptBoundaryError:
    return PromptBoundaryError(
        f"{what}, and nothing says where the prompt of an example ends",
        code="positions.no_labels",
        rule="a prompt ends before the first label that is not -100, or where prompt_mask or prompt_lengths say",
        fix="give the examples labels, prompt_mask or prompt_lengths, or pass prompt_length; say prompt='all' if each "
        "row holds a prompt and nothing else; for conversations with answers, a chat template that marks them with "
        "{% generation %} … {% endgeneration %} says it too",
    )
