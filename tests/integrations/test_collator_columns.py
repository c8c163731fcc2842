"""Examples that state their positions themselves: padded, shifted, concatenated, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import default_data_collator

from contract.tiny import reft_model
from peft_reft.hub_format.errors import LocationError
from peft_reft.integrations import ReftDataCollator

from .test_collator import COLLATORS, example


def stated(pattern: str, **columns: Any) -> dict[str, Any]:
    return {**example(pattern), **columns}


EXAMPLES = [
    stated("pppaa", prompt_mask=[0, 1, 1, 0, 0], intervention_locations=[[0, 2]]),
    stated("ppa", prompt_mask=[1, 0, 0], intervention_locations=[[1]]),
]


@pytest.mark.parametrize(
    ("name", "mask", "locations"),
    [
        ("padded", [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]], [[[0, 2]], [[1, -1]]]),
        ("right", [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]], [[[0, 2]], [[1, -1]]]),
        ("left", [[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]], [[[0, 2]], [[3, -1]]]),
        ("padding_free", [[0, 1, 1, 0, 0, 1, 0, 0]], [[[0, 2, 6]]]),
        ("filled", [[0, 1, 1, 0, 0, 1, 0, 0] + [0] * 8], [[[0, 2, 6]]]),
        ("flattened", [[0, 1, 1, 0, 0, 1, 0, 0]], [[[0, 2, 6]]]),
    ],
)
def test_columns_are_moved_to_the_columns_of_the_batch(name: str, mask: Any, locations: Any) -> None:
    batch = ReftDataCollator(COLLATORS[name]())(EXAMPLES)
    assert batch["prompt_mask"].tolist() == mask
    assert batch["intervention_locations"].tolist() == locations
    assert {batch[key].dtype for key in ("prompt_mask", "intervention_locations")} == {torch.long}


def test_one_example_alone_in_a_filled_row() -> None:
    batch = ReftDataCollator(COLLATORS["filled"]())(EXAMPLES[1:])
    assert batch["prompt_mask"].tolist() == [[1] + [0] * 15]
    assert batch["intervention_locations"].tolist() == [[[1]]]


def test_locations_alone_leave_the_mask_to_the_labels() -> None:
    examples = [stated("pppaa", intervention_locations=[[0], [2, 1]]), stated("ppa", intervention_locations=[[], [1]])]
    batch = ReftDataCollator(COLLATORS["left"]())(examples)
    assert batch["prompt_mask"].tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert batch["intervention_locations"].tolist() == [[[0, -1], [2, 1]], [[-1, -1], [3, -1]]]


def test_locations_by_adapter() -> None:
    examples = [
        stated("ppa", intervention_locations={"one": [[0]], "two": [[1], [2]]}),
        stated("pppaa", intervention_locations={"one": [[3]], "two": [[0], [-1]]}),
    ]
    found = ReftDataCollator(COLLATORS["left"]())(examples)["intervention_locations"]
    assert found["one"].tolist() == [[[2]], [[3]]]
    assert found["two"].tolist() == [[[3], [4]], [[0], [-1]]]


def test_lengths_become_a_mask() -> None:
    examples = [stated("aaaaa", prompt_lengths=2), stated("aaa", prompt_lengths=0)]
    assert ReftDataCollator(COLLATORS["left"]())(examples)["prompt_mask"].tolist() == [[1, 1, 0, 0, 0], [0] * 5]


def test_columns_need_no_labels() -> None:
    collate = ReftDataCollator(default_data_collator)
    assert collate([{"input_ids": [5, 6], "prompt_mask": [1, 0]}])["prompt_mask"].tolist() == [[1, 0]]
    batch = collate([{"input_ids": [5, 6], "intervention_locations": [[1]]}])
    assert set(batch) == {"input_ids", "intervention_locations"}


def test_stated_positions_win_over_labels_in_the_model() -> None:
    model = reft_model("llama", positions="l1").eval()
    examples = [stated("pppaa", intervention_locations=[[1]]), stated("ppa", intervention_locations=[[0]])]
    batch = ReftDataCollator(COLLATORS["left"]())(examples)
    rows = [
        model(
            input_ids=torch.tensor([e["input_ids"]]),
            intervention_locations=torch.tensor([e["intervention_locations"]]),
        )
        for e in examples
    ]
    found = model(**batch).logits
    for row, (alone, length) in enumerate(zip(rows, (5, 3), strict=True)):
        torch.testing.assert_close(found[row, -length:], alone.logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([{"prompt_mask": [1, 0]}, {"prompt_mask": [1, 0, 0]}], r"shape \[2\], its tokens are 4"),
        ([{"prompt_mask": [1, 0, 0, 0]}, {}], "1 of the 2 examples"),
        ([{"prompt_mask": [1] * 4, "prompt_lengths": 4}] * 2, "one of them says"),
        ([{"prompt_lengths": 5}] * 2, "the example has 4"),
        ([{"intervention_locations": [[4]]}] * 2, "position 4.*from 0 to 3"),
        ([{"intervention_locations": [[-2]]}] * 2, "position -2"),
        ([{"intervention_locations": [1, 2]}] * 2, r"shape \[2\]"),
        ([{"intervention_locations": [[0.5]]}] * 2, "float32"),
        ([{"intervention_locations": [[1]]}, {"intervention_locations": [[1], [2]]}], r"\[1, 2\] terms"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(LocationError, match=message):
        ReftDataCollator(COLLATORS["left"]())([stated("pppa", **column) for column in columns])
    decoder = ReftDataCollator(COLLATORS["right"](), stack="decoder")
    with pytest.raises(LocationError):
        decoder([stated("pppa", **column) for column in columns])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt_mask", [1.5, 0, 0]),
        ("prompt_mask", [2, 1, 0]),
        ("prompt_mask", [-100, -100, 7]),
        ("prompt_mask", "110"),
        ("prompt_mask", [[1], [1, 0]]),
        ("prompt_lengths", 1.5),
        ("prompt_lengths", True),
        ("prompt_lengths", -1),
        ("prompt_lengths", 4),
        ("prompt_lengths", 10**400),
        ("prompt_lengths", "1"),
        ("prompt_lengths", [1]),
        ("intervention_locations", {}),
        ("intervention_locations", [[0.5]]),
        ("intervention_locations", [[True]]),
        ("intervention_locations", "f1"),
        ("intervention_locations", [["a"]]),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name(column: str, value: Any) -> None:
    examples = [stated("ppa", **{column: value})]
    with pytest.raises(LocationError, match=f"{column}.*Rule"):
        ReftDataCollator(COLLATORS["padded"]())(examples)


def test_examples_that_name_other_adapters_are_refused() -> None:
    examples = [stated("ppa", intervention_locations={name: [[0]]}) for name in ("a", "b")]
    with pytest.raises(LocationError, match="same adapters"):
        ReftDataCollator(COLLATORS["padded"]())(examples)
