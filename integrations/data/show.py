"""`show_positions`: what an adapter will edit in an example, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import LocationError
from peft_reft.hub_format.schema import SiteGroup

from .columns import Slots, merge_locations
from .example_columns import WholeRow, is_batch, rows_of
from .examples import tokenised
from .locations import has_no_answer, is_encoder_decoder, view_of
from .picture import PositionPicture
from .rows import Row, read_row

__all__ = ["show_positions"]


def show_positions(
    tokenizer: Any,
    example: Any,
    config: ReftConfig,
    *,
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
) -> PositionPicture:
    """The tokens of an example, those that are edited marked with their term, and where the prompt ends.

    In a terminal `print` it; in a notebook it shows itself.

    Args:
        tokenizer: of the base model; its chat template is used for messages.
        example: a tokenised example (`input_ids`, with `attention_mask`, `labels`, `prompt_mask`, `prompt_lengths`,
            `intervention_locations` where it has them), or one as TRL's `SFTTrainer` takes it: `prompt` and
            `completion`, `messages`, `text`; or a text.
        config: whose positions are shown. With `intervention_locations` in the example these are shown instead.
        prompt: `"all"`: the example is a prompt and nothing else, e.g. what you pass to `generate`. A `prompt` without
            a `completion`, and messages without an answer, are that already.
        prompt_length: real tokens of the prompt.

    Returns:
        The picture: text for `print`, HTML in a notebook.

    Raises:
        PromptBoundaryError: the positions depend on where the prompt ends, and nothing says where.
        LocationError: columns that do not fit one another, or a batch.
        ConfigError: an example of another form.
    """
    columns, only_prompt = tokenised(tokenizer, example)
    if is_batch(columns):
        raise LocationError("the example is a batch", rule="one example is shown", fix="pass one row")
    if only_prompt and prompt is None and prompt_length is None:
        prompt = "all"
    no_answer = has_no_answer(config) or is_encoder_decoder(config)
    row = read_row(rows_of(columns)[0], prompt=prompt, prompt_length=prompt_length, no_answer=no_answer)
    stated = columns.get("intervention_locations")
    groups = config.groups()
    if stated is None:  # each term by itself, also where they share an intervention
        groups = tuple(replace(group, share_weights=False) for group in groups)
    view = view_of(config, tokenizer, groups=groups)
    if stated is not None:
        explicit = replace(row.situation.explicit, locations=_locations(stated, row))
        row = replace(row, situation=replace(row.situation, explicit=explicit))
    edited = row.edited(view)
    ids = row.call.input_ids
    real = [] if ids is None else ids[0, row.first : row.first + row.length].tolist()
    return PositionPicture(
        terms=_names(groups, stated=stated is not None),
        tokens=tuple(_text(tokenizer, number) for number in real),
        edited=tuple(map(tuple, edited)),
        prompts=_prompts(row, config) if row.knows_prompt else None,
        padding=(row.first, row.call.length - row.first - row.length),
        note=_note(config),
    )


def _locations(stated: Any, row: Row) -> Tensor:
    real = row.layout().real
    found = merge_locations([stated], [Slots(0, row.first, row.length)], real)
    if not isinstance(found, Tensor):
        raise LocationError(
            "the example's intervention_locations are a dict",
            rule="one adapter is shown",
            fix="pass the example with the positions of that adapter alone",
        )
    return found


def _names(groups: tuple[SiteGroup, ...], *, stated: bool) -> tuple[str, ...]:
    """A name for each unit: its term, with the number of its group where there are several."""
    names = []
    for number, group in enumerate(groups):
        where = f"group {number}, " if len(groups) > 1 else ""
        terms = [str(group.positions)] if group.share_weights else [str(term) for term in group.positions.terms]
        left_out = "" if group.share_weights else "".join(f"-{term}" for term in group.positions.exclusions)
        names += [where + term + left_out + (" (intervention_locations)" if stated else "") for term in terms]
    return tuple(names)


def _note(config: ReftConfig) -> str:
    counts = [
        f"{group.positions} ({'one intervention' if group.units == 1 else f'{group.units} interventions'} per block)"
        for group in config.groups()
    ]
    stack = "; tokens of the encoder" if is_encoder_decoder(config) else ""
    return "positions " + " and ".join(counts) + stack


def _prompts(row: Row, config: ReftConfig) -> tuple[tuple[int, int], ...]:
    """Start and stop of the prompt; with turns="each" of every turn's."""
    layout = row.layout()
    runs = layout.runs() if any(group.turns == "each" for group in config.groups()) else None
    prompt = (layout.prompt if runs is None else runs)[0, row.first : row.first + row.length].tolist()
    fenced = [False, *prompt, False]
    edges = [number for number in range(len(prompt) + 1) if fenced[number] != fenced[number + 1]]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _text(tokenizer: Any, number: int) -> str:
    """A token as text; one that is no text by itself (part of a letter) as the vocabulary has it."""
    text: str = tokenizer.decode([number], skip_special_tokens=False)
    if text and "\ufffd" not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(number))
