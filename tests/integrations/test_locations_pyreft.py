"""`convert_intervention_locations`: the lists that pyreft's helpers print, and the notes' own, in our form."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset

from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError
from peft_reft.integrations import add_intervention_locations, convert_intervention_locations

from .test_locations import F3_L5, L1, PROMPTS, SUFFIXES, row


def converted(example: Any, **options: Any) -> Any:
    found = convert_intervention_locations(example, **options)
    assert list(found) == ["intervention_locations"]
    return found["intervention_locations"]


def with_lists(prompt: int, lists: Any, **padding: int) -> dict[str, Any]:
    return {**row(prompt, 4, **padding), "intervention_locations": lists}


def printed_untied(number: int) -> tuple[list[int], list[int]]:
    """Prefix and suffix as the notes print them: 20 is the dummy of a prompt of 20 tokens."""
    return [0, 1, 2, PROMPTS[number], PROMPTS[number]], SUFFIXES[number]


@pytest.mark.parametrize("number", range(5))
def test_the_printed_lists_of_the_notes(number: int) -> None:
    tokens, options = PROMPTS[number], {"dummy": "after_prompt"}
    ours = partial(add_intervention_locations, row(tokens, 4))
    last = converted(with_lists(tokens, [L1[number]] * 2), share_weights=True, **options)
    assert last == [L1[number]] == ours("l1")["intervention_locations"]
    tied = converted(with_lists(tokens, [F3_L5[number]] * 2), share_weights=True, num_layers=2, **options)
    assert tied == [F3_L5[number]] == ours("f3+l5")["intervention_locations"]
    prefix, suffix = printed_untied(number)
    expected = [[0, 1, 2, -1, -1], suffix]
    assert ours("f3+l5", share_weights=False)["intervention_locations"] == expected
    two = converted(with_lists(tokens, [prefix, suffix]), share_weights=False, num_layers=1, **options)
    by_term = converted(
        with_lists(tokens, [prefix, prefix, suffix, suffix]),
        share_weights=False,
        num_layers=2,
        order="by_term",
        **options,
    )
    by_layer = converted(
        with_lists(tokens, [prefix, suffix, prefix, suffix]),
        share_weights=False,
        num_layers=2,
        order="by_layer",
        **options,
    )
    assert two == by_term == by_layer == expected


# prompts alone: (tokens, padding, prefix list, suffix list) as the function in the notes writes them → ours
NOTES: list[tuple[int, int, list[int], list[int], list[list[int]]]] = [
    (8, 2, [0, 1, 2], [6, 7], [[0, 1, 2], [6, 7, -1]]),
    (5, 0, [0, 1, 2], [2, 3, 4], [[0, 1, 2], [3, 4, -1]]),  # it edits token 2 twice
    (4, 0, [0, 1, 2], [3, 3, 3, 3, 3], [[0, 1, 2], [3, -1, -1]]),  # without padding its dummy is the last token
    (4, 3, [0, 1, 2], [3, 4, 4, 4, 4], [[0, 1, 2], [3, -1, -1]]),
    (2, 0, [0, 1, 1], [1, 1, 1, 1, 1], [[0, 1], [-1, -1]]),
    (2, 1, [0, 1, 2], [2, 2, 2, 2, 2], [[0, 1], [-1, -1]]),
]


@pytest.mark.parametrize(("tokens", "padding", "prefix", "suffix", "expected"), NOTES)
def test_what_the_function_in_the_notes_writes(
    tokens: int, padding: int, prefix: list[int], suffix: list[int], expected: list[list[int]]
) -> None:
    example = {"input_ids": [5] * (tokens + padding), "attention_mask": [1] * tokens + [0] * padding}
    untied = {**example, "intervention_locations": [prefix, suffix] * 3}
    options: dict[str, Any] = {"share_weights": False, "num_layers": 3, "order": "by_layer"}
    assert converted(untied, dummy="after_row", **options) == expected
    assert converted(untied, dummy="after_prompt", prompt="all", **options) == expected
    tied = {**example, "intervention_locations": [prefix + suffix] * 3}
    assert converted(tied, dummy="after_row", share_weights=True) == [
        [position for term in expected for position in term if position >= 0]
    ]


# pyreft's make_multiple_position_supervised_data_module, four interventions: (spec, tied, prompt, list) → ours
SHORT: list[tuple[bool, int, list[list[int]], list[list[int]]]] = [
    (False, 1, [[1, 1]] * 4, [[-1], [-1]]),
    (False, 2, [[0, 2, 2, 2, 2]] * 2 + [[1, 2, 2, 2, 2]] * 2, [[0], [1]]),
    (False, 5, [[0, 1, 5, 5, 5]] * 2 + [[3, 4, 5, 5, 5]] * 2, [[0, 1], [3, 4]]),
    (False, 8, [[0, 1, 2, 8, 8]] * 2 + [[4, 5, 6, 7, 8]] * 2, [[0, 1, 2, -1], [4, 5, 6, 7]]),
    (True, 2, [[0, 1, 2, 2, 2, 2, 2, 2]] * 4, [[0, 1]]),
    (True, 3, [[0, 2, 3, 3, 3, 3, 3, 3]] * 4, [[0, 2]]),
]


@pytest.mark.parametrize(("tied", "prompt", "lists", "expected"), SHORT)
def test_short_prompts_of_pyrefts_modules(
    tied: bool, prompt: int, lists: list[list[int]], expected: list[list[int]]
) -> None:
    options: dict[str, Any] = {} if tied else {"num_layers": 2, "order": "by_term"}
    example = with_lists(prompt, lists)
    assert converted(example, share_weights=tied, dummy="after_prompt", **options) == expected


# pyreft's ReftDataset classes: a padding token stands first, everything is shifted by one, dummies are 0
@pytest.mark.parametrize(
    ("tokens", "lists", "expected"),
    [
        (6, [[0] * 8] * 4, [[-1], [-1]]),
        (9, [[1, 0, 0, 0, 0]] * 2 + [[3, 0, 0, 0, 0]] * 2, [[0], [2]]),
        (13, [[1, 2, 3, 0, 0]] * 2 + [[5, 6, 7, 8, 0]] * 2, [[0, 1, 2, -1], [4, 5, 6, 7]]),
        (16, [[1, 2, 3, 0, 0]] * 2 + [[8, 9, 10, 11, 12]] * 2, [[0, 1, 2, -1, -1], [7, 8, 9, 10, 11]]),
    ],
)
def test_a_padding_token_put_first(tokens: int, lists: list[list[int]], expected: list[list[int]]) -> None:
    example = {
        "input_ids": [0] + [5] * tokens,
        "attention_mask": [0] + [1] * tokens,
        "intervention_locations": lists,
    }
    options: dict[str, Any] = {"share_weights": False, "num_layers": 2, "order": "by_term"}
    assert converted(example, dummy="first_column", **options) == expected
    with pytest.raises(LocationError, match="a slot holds 0"):
        converted(example, dummy="none", **options)
    whole = {**example, "attention_mask": [1] * (tokens + 1)}
    with pytest.raises(LocationError, match="first column holds a real token"):
        converted(whole, dummy="first_column", **options)


def test_minus_one_is_none_whatever_the_dummy() -> None:
    for dummy in ("after_prompt", "after_row", "none"):
        assert converted(with_lists(3, [[0, -1], [0, -1]]), share_weights=True, dummy=dummy) == [[0]]


def test_the_dummy_is_said_and_never_guessed() -> None:
    example = with_lists(3, [[0, 3], [0, 3]])  # 3 is the first token of the answer
    assert converted(example, share_weights=True, dummy="after_prompt") == [[0]]
    assert converted(example, share_weights=True, dummy="none") == [[0, 3]]
    assert converted(example, share_weights=True, dummy="after_row") == [[0, 3]]
    with pytest.raises(TypeError, match="dummy"):
        convert_intervention_locations(example, share_weights=True)  # type: ignore[call-arg]
    unlabelled = {"input_ids": [5, 6, 7], "intervention_locations": [[0, 3]]}
    with pytest.raises(PromptBoundaryError, match="prompt_length"):
        converted(unlabelled, share_weights=True, dummy="after_prompt")
    assert converted(unlabelled, share_weights=True, dummy="after_prompt", prompt="all") == [[0]]


@pytest.mark.parametrize("wrong", [7, 9, 99, -2])
def test_a_slot_that_names_nothing_is_refused(wrong: int) -> None:
    """Seven real tokens, then two of padding."""
    example = with_lists(3, [[0, wrong]] * 2, right=2)
    with pytest.raises(LocationError, match=f"a slot holds {wrong}") as refused:
        converted(example, share_weights=True, dummy="after_prompt")
    assert refused.value.value == wrong


def test_layers_that_differ_are_refused() -> None:
    for options, lists in (
        ({"share_weights": True}, [[0, 1], [0, 2]]),
        ({"share_weights": False, "num_layers": 2, "order": "by_layer"}, [[0], [0], [2], [2]]),
        ({"share_weights": False, "num_layers": 2, "order": "by_term"}, [[0], [2], [0], [2]]),
    ):
        with pytest.raises(LocationError, match="layers 0 and 1 have different positions"):
            converted(with_lists(3, lists), dummy="after_prompt", **options)


@pytest.mark.parametrize(
    ("options", "lists", "error"),
    [
        ({"share_weights": False}, [[0], [2]], ConfigError),
        ({"share_weights": False, "num_layers": 2}, [[0], [0], [2], [2]], ConfigError),
        ({"share_weights": False, "num_layers": 2, "order": "sideways"}, [[0], [0], [2], [2]], ConfigError),
        ({"share_weights": True, "order": "by_term"}, [[0], [0]], ConfigError),
        ({"share_weights": "yes"}, [[0], [0]], ConfigError),
        ({"share_weights": True, "dummy": "last"}, [[0], [0]], ConfigError),
        ({"share_weights": True, "num_layers": 0}, [[0], [0]], ConfigError),
        ({"share_weights": True, "num_layers": 3}, [[0], [0]], LocationError),
        ({"share_weights": True, "num_layers": 1}, [[0], [0]], LocationError),
        ({"share_weights": False, "num_layers": 3}, [[0], [0]], LocationError),
        ({"share_weights": True}, [], LocationError),
        ({"share_weights": True}, [0, 1], LocationError),
        ({"share_weights": True}, [["0"]], LocationError),
        ({"share_weights": True}, [[[0]]], LocationError),
        ({"share_weights": True}, None, LocationError),
        ({"share_weights": True, "column": "positions"}, [[0]], LocationError),
    ],
)
def test_choices_and_shapes_are_checked(options: dict[str, Any], lists: Any, error: type[ValueError]) -> None:
    with pytest.raises(error, match="Rule"):
        converted(with_lists(3, lists), **{"dummy": "after_prompt", **options})


def test_a_data_set_is_converted_in_processes() -> None:
    prefix, suffix = printed_untied(0)
    rows = [with_lists(20, [prefix, prefix, suffix, suffix]), with_lists(1, [[1, 1]] * 4)]
    work = partial(
        convert_intervention_locations, share_weights=False, num_layers=2, order="by_term", dummy="after_prompt"
    )
    for options in ({"num_proc": 2}, {"batched": True}):
        made = Dataset.from_list(rows).map(work, **options)
        assert made["intervention_locations"][:] == [[[0, 1, 2, -1, -1], suffix], [[-1], [-1]]]
    tensors = {name: torch.tensor(values) for name, values in rows[0].items()}
    assert converted(tensors, **work.keywords) == [[0, 1, 2, -1, -1], suffix]
