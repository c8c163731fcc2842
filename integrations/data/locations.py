"""`add_intervention_locations`: a tokenised data set with its edited positions written beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, overload

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, PositionError, shown
from peft_reft.hub_format.keywords import explains_keywords
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.special_tokens import unbound_tokens
from peft_reft.model import COMPLETION_TASKS
from peft_reft.positions.binding import special_ids
from peft_reft.runtime.views import AdapterView
from peft_reft.screen import progress

from .example_columns import WholeRow, is_batch, rows_of
from .rows import read_row
from .whole_sets import is_data_set

__all__ = ["add_intervention_locations", "has_no_answer", "is_encoder_decoder", "rectangle", "view_of"]


@overload
def add_intervention_locations(
    example: Mapping[str, Any],
    positions: str | None = None,
    *,
    share_weights: bool | None = None,
    turns: str | None = None,
    config: ReftConfig | None = None,
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
    tokenizer: Any = None,
) -> dict[str, list[Any]]: ...
@overload
def add_intervention_locations(
    example: Any,
    positions: str | None = None,
    *,
    share_weights: bool | None = None,
    turns: str | None = None,
    config: ReftConfig | None = None,
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
    tokenizer: Any = None,
    num_proc: int | None = None,
) -> Any: ...
@explains_keywords(
    first_n="positions, e.g. 'f3' for the first three",
    last_n="positions, e.g. 'l3' for the last three",
    num_interventions="share_weights: one list for all terms, or one for each; the number of layers does not matter",
    num_prefix_positions="positions, e.g. 'f3' for the first three",
    num_suffix_positions="positions, e.g. 'l3' for the last three",
)
def add_intervention_locations(
    example: Any,
    positions: str | None = None,
    *,
    share_weights: bool | None = None,
    turns: str | None = None,
    config: ReftConfig | None = None,
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
    tokenizer: Any = None,
    num_proc: int | None = None,
) -> Any:
    """The positions that an adapter edits in examples that are tokenised already: a data set, or rows of it.

    A training run needs no such column: labels say the same. Write it to look at it, to change it, or for data whose
    prompts only you know. `ReftDataCollator` pads the column and shifts it to its place in a batch.

    Where the prompt ends is read from `prompt_mask` or `prompt_lengths`, else from `labels` (the first that is not
    −100), else from TRL's `completion_mask` and `assistant_masks`.

    Args:
        example: columns of one example, or with `batched=True` of several, padded or not; or a `Dataset` or
            `DatasetDict`, whose bar is that of `datasets`. Without an `attention_mask` every token is real.
        positions: the spec, e.g. `"f3+l5"`.
        share_weights: True (None means True): one list for all terms. False: one list for each term.
        turns: as in `ReftConfig`; None means `"first"`.
        config: instead of these three; its groups follow one another.
        prompt: `"all"`: every row holds a prompt and nothing else.
        prompt_length: real tokens of every prompt, where it is the same for all.
        tokenizer: for `tok(…)` where `config` is not bound to one.
        num_proc: of `datasets.map`, for a data set.

    Returns:
        `{"intervention_locations": [terms][k]}`, for a batch one such per row: positions counted from the row's first
        real token, −1 for none; `terms` is 1 for a tied group and one per term otherwise. For a data set the data set
        with this column.

    Raises:
        PromptBoundaryError: the positions depend on where the prompt ends, and nothing says where.
        LocationError: columns that do not fit one another, packed rows.
        ConfigError: both or neither of `positions` and `config`; `num_proc` without a data set, or no number.

    >>> row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, -100, -100, 9]}
    >>> add_intervention_locations(row, "f1+l2", share_weights=False)
    {'intervention_locations': [[0, -1], [2, 3]]}
    >>> located = add_intervention_locations(rows, "f3+l5")  # rows: a `Dataset`; many of them with num_proc=16
    >>> located = rows.map(partial(add_intervention_locations, positions="f3+l5"))  # the same
    """
    if is_data_set(example):
        _check_processes(num_proc)
        view_of(
            _checked(config, positions, share_weights, turns), tokenizer
        )  # what is wrong is refused here, not there
        each = partial(
            add_intervention_locations,
            positions=positions,
            share_weights=share_weights,
            turns=turns,
            config=config,
            prompt=prompt,
            prompt_length=prompt_length,
            tokenizer=tokenizer,
        )
        return example.map(each, num_proc=num_proc, desc="intervention locations")
    if num_proc is not None:
        raise ConfigError(
            f"num_proc={num_proc!r} beside a {type(example).__name__}",
            value=num_proc,
            rule="processes share the rows of a Dataset or DatasetDict",
            fix="pass num_proc to datasets.map, or the data set to this function",
        )
    config = _checked(config, positions, share_weights, turns)
    view, no_answer = view_of(config, tokenizer), has_no_answer(config)
    rows = rows_of(example)
    found = [
        rectangle(read_row(row, prompt=prompt, prompt_length=prompt_length, no_answer=no_answer).edited(view))
        for row in progress(rows, "locations", unit="row", keep=False)
    ]
    return {"intervention_locations": found if is_batch(example) else found[0]}


def _check_processes(num_proc: Any) -> None:
    if num_proc is not None and (type(num_proc) is not int or num_proc < 0):
        raise ConfigError(f"num_proc={shown(num_proc)}", value=num_proc, rule="an int, 1 or more, or None: no others")


def _checked(
    config: ReftConfig | None, positions: str | None, share_weights: bool | None, turns: str | None
) -> ReftConfig:
    """The config that is given, or the one that the three describe."""
    if config is None:
        for name, value in (("positions", positions), ("share_weights", share_weights), ("turns", turns)):
            if not isinstance(value, (str, bool, type(None))):
                raise ConfigError(
                    f"{name} is {shown(value)}",
                    value=value,
                    rule="positions and turns are strings, share_weights a bool",
                    fix="pass a ReftConfig as config=",
                )
        config = _config(positions, share_weights, turns)
    elif not isinstance(config, ReftConfig):
        raise ConfigError(f"config is {shown(config)}", value=config, rule="it is a ReftConfig")
    elif not (positions is None and share_weights is None and turns is None):
        raise ConfigError(
            "config is given beside positions, share_weights or turns",
            rule="a config says all of these itself",
            fix="pass one or the other",
        )
    if is_encoder_decoder(config):
        raise ConfigError(
            "config is for an encoder-decoder",
            value="SEQ_2_SEQ_LM",
            rule="an encoder's prompt is its attended input, a decoder's its start tokens: no example differs",
            fix="leave intervention_locations out",
        )
    return config


def rectangle(terms: Sequence[Sequence[int]]) -> list[list[int]]:
    """`[terms][k]`, shorter terms filled with −1; k is at least 1."""
    widest = max(1, *map(len, terms))
    return [[*term, *[-1] * (widest - len(term))] for term in terms]


def has_no_answer(config: ReftConfig) -> bool:
    """Whether all real tokens of an example are prompt: classification, feature extraction."""
    task = _task(config)
    return task is not None and task not in COMPLETION_TASKS


def is_encoder_decoder(config: ReftConfig) -> bool:
    """Whether the config says that its model has two stacks."""
    return _task(config) == "SEQ_2_SEQ_LM"


def _task(config: ReftConfig) -> str | None:
    if not isinstance(config, ReftConfig):
        raise ConfigError(f"config is a {type(config).__name__}", rule="it is a ReftConfig")
    task = config.task_type
    return None if task is None else str(getattr(task, "value", task))


def view_of(config: ReftConfig, tokenizer: Any = None, *, groups: tuple[SiteGroup, ...] | None = None) -> AdapterView:
    """A config as the resolver sees it.

    Args:
        config: of the adapter.
        tokenizer: gives the ids of `tok(…)`; the config itself stays as it is.
        groups: instead of the config's own.

    Raises:
        PositionError: `tok(…)`, and neither the config nor a tokenizer says its id.
    """
    groups = config.groups() if groups is None else groups
    if tokenizer is not None:
        return AdapterView("default", groups, special_ids(tokenizer, groups, config.special_tokens))
    if unbound := unbound_tokens(config.special_tokens, groups):
        raise PositionError(
            f"positions name tok({unbound[0]}), which is bound to no tokenizer",
            code="positions.unbound",
            value=unbound[0],
            rule="a special token is edited by its id, which only a tokenizer knows",
            fix="pass tokenizer, or a config after config.bind_tokenizer(tokenizer)",
        )
    return AdapterView("default", groups, (config.special_tokens or {}).get("ids", {}))


@lru_cache(maxsize=64)
def _config(positions: str | None, share_weights: bool | None, turns: str | None) -> ReftConfig:
    if positions is None:
        raise ConfigError("neither positions nor config is given", rule="one of them says which tokens are edited")
    return ReftConfig(
        positions=positions,
        share_weights=True if share_weights is None else share_weights,
        turns="first" if turns is None else turns,
    )
