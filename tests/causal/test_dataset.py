"""Interchanges as a dataset: labels, tokenised rows, padding, batches with rows that exchange different variables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from peft_reft.causal import (
    CausalModel,
    InterchangeCollator,
    InterchangeDataset,
    PadRows,
    Pair,
    every_pair,
    interchange_accuracy,
    sample_pairs,
)
from peft_reft.hub_format.errors import CausalModelError, ConfigError

from .test_accuracy import AND, OR, decode, encode, turned
from .test_interchange import Conjunction

TRUE, HALF, FALSE = ({"P": p, "Q": q} for p, q in ((True, True), (True, False), (False, False)))
ITEM = {"base": [1], "sources": {"A": [2]}, "label": 1, "base_label": 0}


def test_items_hold_what_the_causal_model_says() -> None:
    data = InterchangeDataset.from_pairs(AND, [Pair(HALF, {"B": TRUE}), Pair(TRUE, {"A": FALSE, "B": HALF})])
    assert [data[0]["label"], data[0]["base_label"], data[1]["label"]] == [True, False, False]
    assert data[1]["sources"] == {"A": FALSE, "B": HALF}
    assert data.variables == ("B", "A")
    assert len(data) == 2


def test_rows_are_made_of_every_input() -> None:
    data = InterchangeDataset.from_pairs(AND, [Pair(HALF, {"B": TRUE})], row=lambda values: [values["P"], values["Q"]])
    assert data[0]["base"] == [True, False]
    assert data[0]["sources"] == {"B": [True, True]}


def test_a_batch_repeats_the_base_where_a_row_does_not_exchange_a_variable() -> None:
    data = InterchangeDataset.from_pairs(AND, [Pair(HALF, {"B": TRUE}), Pair(FALSE, {"A": TRUE, "B": HALF})])
    batch = next(iter(DataLoader(data, batch_size=2, collate_fn=InterchangeCollator(encode))))
    assert batch["base"].tolist() == [[1, 0], [0, 0]]
    assert {name: rows.tolist() for name, rows in batch["sources"].items()} == {
        "A": [[1, 0], [1, 1]],
        "B": [[1, 1], [1, 0]],
    }
    assert {name: rows.tolist() for name, rows in batch["exchanged"].items()} == {
        "A": [False, True],
        "B": [True, True],
    }
    assert batch["labels"] == [True, False]


def test_a_source_that_is_none_is_no_source() -> None:
    """As tables with one column for each variable have it."""
    data = InterchangeDataset([{**ITEM, "sources": {"A": None, "B": [2]}}])
    assert data.variables == ("B",)
    assert list(InterchangeCollator(torch.tensor)(data.items)["sources"]) == ["B"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "0 pairs"),
        ([{"base": [1], "sources": {"A": [2]}, "label": 1}], "base_label"),
        ([{**ITEM, "sources": [2]}], "variable → row"),
        ([ITEM, {**ITEM, "sources": {}}], "item 1 has no source"),
        (["base"], "item 0: str"),
    ],
    ids=["empty", "key", "list", "no source", "no mapping"],
)
def test_what_is_no_dataset_is_refused(items: Any, message: str) -> None:
    with pytest.raises(CausalModelError, match=message):
        InterchangeDataset(items)


def test_accuracy_takes_the_labels_of_a_dataset() -> None:
    pairs = list(every_pair(AND, ["A", "B"]))
    for labels, exact in ((AND, True), (OR, False)):
        data = InterchangeDataset.from_pairs(labels, pairs)
        found = interchange_accuracy(Conjunction(), AND, turned(), data, encode=encode, decode=decode)
        assert (found.value == 1.0) is exact
        changed = sum(pair.changes(labels) for pair in pairs) / len(pairs)
        assert found.unchanged == pytest.approx(1 - changed)


def test_pairs_of_inputs_drawn_by_a_function() -> None:
    same = CausalModel({"E": lambda A, B: A == B}, inputs={"A": range(100), "B": range(100)})

    def draw(generator: Any) -> dict[str, int]:
        first = generator.randrange(100)
        return {"A": first, "B": first if generator.random() < 0.5 else generator.randrange(100)}

    pairs = sample_pairs(same, ["E"], 200, seed=0, inputs=draw)
    assert pairs == sample_pairs(same, ["E"], 200, seed=0, inputs=draw)
    assert pairs != sample_pairs(same, ["E"], 200, seed=1, inputs=draw)
    equal = sum(pair.base["A"] == pair.base["B"] for pair in pairs)
    assert 70 < equal < 130  # 2 of 200 if the values were drawn for themselves


ROWS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "at": 1}, {"input_ids": [8], "labels": [8], "at": 0}]


def test_rows_are_padded_right_or_left() -> None:
    right, left = PadRows(9, "right")(ROWS), PadRows(9, padding_side="left")(ROWS)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]
    assert left["at"].tolist() == right["at"].tolist() == [1, 0]


def test_a_mask_of_the_row_is_kept() -> None:
    padded = PadRows(0, "left")(
        [{"input_ids": [0, 5], "attention_mask": [0, 1]}, {"input_ids": [7], "attention_mask": [1]}]
    )
    assert padded["attention_mask"].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([[1, 2]], "without input_ids"),
        ([{"input_ids": [[1, 2]]}], "one prompt at a time"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], "attention_mask"),
        ([{"input_ids": [1]}, {"input_ids": [1], "at": 0}], "row 1 has the keys"),
        ([{"input_ids": [1], "at": [0]}, {"input_ids": [1], "at": [0, 0]}], "same shape in every row"),
    ],
    ids=["none", "list", "batched", "mask", "keys", "stack"],
)
def test_rows_that_make_no_batch_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PadRows(0, "right")(rows)


def test_padding_needs_a_side_and_an_id() -> None:
    with pytest.raises(ConfigError, match="'left' or 'right'"):
        PadRows(0, "middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pad_token_id=None"):
        PadRows(None, "left")  # type: ignore[arg-type]
