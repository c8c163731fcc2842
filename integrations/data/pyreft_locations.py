"""`convert_intervention_locations`: pyreft's column of positions → ours.

pyreft writes one list per intervention, that is per layer, and for untied weights per layer and term. All lists of an
example have the same length: slots without a token hold the index of a dummy position, and which one that is differs
between its helpers. Here there is one list per term for all layers, and −1 is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from peft_reft.hub_format.errors import ConfigError, LocationError
from peft_reft.hub_format.keywords import explains_keywords

from .example_columns import WholeRow, is_batch, rows_of
from .locations import rectangle
from .rows import Row, read_row

__all__ = ["Dummy", "Order", "convert_intervention_locations"]

Dummy = Literal["after_prompt", "after_row", "first_column", "none"]
Order = Literal["by_term", "by_layer"]


@explains_keywords(num_interventions="num_layers")
def convert_intervention_locations(
    example: Mapping[str, Any],
    *,
    share_weights: bool,
    dummy: Dummy,
    num_layers: int | None = None,
    order: Order | None = None,
    column: str = "intervention_locations",
    prompt: WholeRow | None = None,
    prompt_length: int | None = None,
) -> dict[str, list[Any]]:
    """pyreft's `intervention_locations` of examples → ours, for `datasets.map`.

    Args:
        example: columns of one tokenised example, or with `batched=True` of several.
        share_weights: True: the lists are one per layer, all the same (`[[0, 1, 18, 19]] * layers`). False: one per
            layer and term.
        dummy: what the slots without a token hold.
            `"after_prompt"`: the position after the prompt, which is the answer's first token (pyreft's
            `make_…_data_module` functions).
            `"after_row"`: the position after the row's last real token.
            `"first_column"`: column 0, a padding token put before the example (pyreft's `ReftDataset` classes).
            `"none"`: there are no such slots.
            −1 means none in any case.
        num_layers: how many layers the lists are for. Needed where weights are not shared.
        order: of the lists where weights are not shared and there are several layers. `"by_term"`: all layers'
            prefixes, then all suffixes (`[p, p, s, s]`, pyreft's own). `"by_layer"`: `[p, s, p, s]`.
        column: where the lists are.
        prompt: for `"after_prompt"`, as in `add_intervention_locations`.
        prompt_length: for `"after_prompt"`, as in `add_intervention_locations`.

    Returns:
        `{"intervention_locations": [terms][k]}`, for a batch one such per row: positions counted from the row's first
        real token, −1 for none. A token that two terms name stays with the first.

    Raises:
        LocationError: lists that differ between layers (here one list per term holds for all), or a slot that holds
            neither a real token nor the dummy.
        PromptBoundaryError: `"after_prompt"`, and nothing says where the prompt ends.
        ConfigError: a choice that is missing or not allowed.

    >>> row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}
    >>> row["intervention_locations"] = [[0, 3, 3], [0, 3, 3], [1, 2, 3], [1, 2, 3]]
    >>> convert_intervention_locations(row, share_weights=False, dummy="after_prompt", num_layers=2, order="by_term")
    {'intervention_locations': [[0, -1], [1, 2]]}
    """
    _check_choices(share_weights, dummy, num_layers, order)
    if column not in example or example[column] is None:
        raise LocationError(
            f"the example has no column {column!r}; it has: {', '.join(map(str, example))}",
            value=column,
            rule="pyreft writes its positions to intervention_locations",
            fix="name the column",
        )
    batched = is_batch(example)
    tables = list(example[column]) if batched else [example[column]]
    found = []
    for columns, table in zip(rows_of(example), tables, strict=True):
        row = read_row(columns, prompt=prompt, prompt_length=prompt_length)
        terms = _terms(_lists(table), share_weights, num_layers, order)
        found.append(_claimed([_positions(layers, row, dummy) for layers in terms]))
    return {"intervention_locations": found if batched else found[0]}


def _check_choices(share_weights: object, dummy: object, num_layers: object, order: object) -> None:
    if not isinstance(share_weights, bool):
        raise ConfigError(f"share_weights={share_weights!r}", value=share_weights, rule="it is True or False")
    if dummy not in get_args(Dummy):
        raise ConfigError(
            f"dummy={dummy!r}", value=dummy, rule=f"it is one of {', '.join(map(repr, get_args(Dummy)))}"
        )
    if order is not None and order not in get_args(Order):
        raise ConfigError(f"order={order!r}", value=order, rule="it is 'by_term' or 'by_layer'")
    if order is not None and share_weights:
        raise ConfigError(f"order={order!r}", value=order, rule="with shared weights all lists are the same")
    if num_layers is None and not share_weights:
        raise ConfigError(
            "num_layers is not given",
            rule="without shared weights the number of lists is layers times terms, and only you know the layers",
            fix="pass num_layers",
        )
    if num_layers is not None and (isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1):
        raise ConfigError(f"num_layers={num_layers!r}", value=num_layers, rule="it is 1 or more")


def _lists(table: Any) -> list[list[int]]:
    """The lists of one example, whatever holds them."""
    plain = table.tolist() if hasattr(table, "tolist") else table
    if not isinstance(plain, Sequence) or not plain:
        raise _shape(plain)
    lists = [entry.tolist() if hasattr(entry, "tolist") else entry for entry in plain]
    if not all(isinstance(entry, Sequence) and all(type(slot) is int for slot in entry) for entry in lists):
        raise _shape(plain)
    return [list(entry) for entry in lists]


def _shape(table: object) -> LocationError:
    shown = repr(table)
    return LocationError(
        f"intervention_locations is {shown if len(shown) < 60 else shown[:60] + '…'}",
        rule="pyreft's are one list of indices per intervention",
    )


def _terms(
    lists: list[list[int]], share_weights: bool, num_layers: int | None, order: Order | None
) -> list[list[list[int]]]:
    """For each term its list of every layer."""
    layers = len(lists) if num_layers is None else num_layers
    count, rest = divmod(len(lists), layers)
    if rest or (share_weights and count != 1):
        raise LocationError(
            f"an example has {len(lists)} lists of positions for {layers} layers",
            value=len(lists),
            rule="there is one per layer" if share_weights else "there is one per layer and term",
            fix="check num_layers and share_weights",
        )
    if count > 1 and layers > 1 and order is None:
        raise ConfigError(
            f"{len(lists)} lists for {layers} layers and {count} terms may stand in two orders",
            rule="order is 'by_term' ([prefix, prefix, suffix, suffix]) or 'by_layer' ([prefix, suffix, …])",
            fix="pass order",
        )
    if order == "by_layer":
        return [lists[term::count] for term in range(count)]
    return [lists[term * layers : (term + 1) * layers] for term in range(count)]


def _positions(layers: list[list[int]], row: Row, dummy: Dummy) -> list[int]:
    """One term's positions, after the check that all layers have the same."""
    stop = row.first + row.length
    nowhere = {-1, _dummy_column(row, dummy)}
    named = [{slot for slot in slots if slot not in nowhere} for slots in layers]
    for number, slots in enumerate(named):
        for slot in sorted(slots):
            if not row.first <= slot < stop:
                raise LocationError(
                    f"a slot holds {slot}",
                    value=slot,
                    rule=f"it names one of the real tokens {row.first} to {stop - 1}, or the dummy (dummy={dummy!r})",
                    fix="say with dummy what slots without a token hold",
                )
        if slots != named[0]:
            raise LocationError(
                f"layers 0 and {number} have different positions: {sorted(named[0])} and {sorted(slots)}",
                value=number,
                rule="one list per term holds for all layers",
                fix="check order and num_layers; positions that differ by layer need a config with one group in "
                "interventions for each, and a list for each of its terms",
            )
    return sorted(slot - row.first for slot in named[0])


def _dummy_column(row: Row, dummy: Dummy) -> int:
    if dummy == "after_prompt":
        return row.prompt_stop()
    if dummy == "after_row":
        return row.first + row.length
    if dummy == "first_column" and row.first == 0:
        raise LocationError(
            "the first column holds a real token",
            rule="dummy='first_column' is for examples with a padding token put before them, attention_mask 0",
            fix="say with dummy what slots without a token hold",
        )
    return 0 if dummy == "first_column" else -1


def _claimed(terms: list[list[int]]) -> list[list[int]]:
    """The terms, each token with the first that names it."""
    taken: set[int] = set()
    kept = []
    for term in terms:
        kept.append([position for position in term if position not in taken])
        taken.update(term)
    return rectangle(kept)
