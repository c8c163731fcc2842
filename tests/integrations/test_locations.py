"""`add_intervention_locations`: the positions a forward would edit, written beside examples that are tokenised."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import DataCollatorForSeq2Seq

from contract.recording import edited_by
from contract.tiny import reft_model
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, LocationError, PositionError, PromptBoundaryError
from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer, add_intervention_locations

from .test_collator import COLLATORS
from .tiny_sft import losses, reft, tokenizer, trainer_for

Locations = list[list[int]]


def row(prompt: int, answer: int = 3, *, left: int = 0, right: int = 0) -> dict[str, list[int]]:
    """A tokenised example with labels, padded to a side or both."""
    tokens = prompt + answer
    ids = [10 + number for number in range(tokens)]
    return {
        "input_ids": [0] * left + ids + [0] * right,
        "attention_mask": [0] * left + [1] * tokens + [0] * right,
        "labels": [-100] * (left + prompt) + ids[prompt:] + [-100] * right,
    }


def located(example: Any, positions: str | None = None, **options: Any) -> Any:
    found = add_intervention_locations(example, positions, **options)
    assert list(found) == ["intervention_locations"]
    return found["intervention_locations"]


PROMPTS = [20, 20, 29, 22, 32]
"""Tokens of the five prompts of pyreft's example, whose positions are known."""
L1 = [[19], [19], [28], [21], [31]]
F3_L5 = [
    [0, 1, 2, 15, 16, 17, 18, 19],
    [0, 1, 2, 15, 16, 17, 18, 19],
    [0, 1, 2, 24, 25, 26, 27, 28],
    [0, 1, 2, 17, 18, 19, 20, 21],
    [0, 1, 2, 27, 28, 29, 30, 31],
]
SUFFIXES = [tied[3:] for tied in F3_L5]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("padding", [(0, 0), (0, 4), (3, 0), (2, 2)])
def test_the_printed_positions_of_the_notes(number: int, padding: tuple[int, int]) -> None:
    example = row(PROMPTS[number], 7, left=padding[0], right=padding[1])
    assert located(example, positions="l1") == [L1[number]]
    assert located(example, positions="f3+l5") == [F3_L5[number]]
    assert located(example, positions="f3+l5", share_weights=False) == [[0, 1, 2, -1, -1], SUFFIXES[number]]


# what the function in the notes gives for rows that are prompts: (tokens, padding, prefix, suffix) → prefix, suffix;
# its dummies left out, and a token that both name with the prefix
NOTES: list[tuple[int, int, int, int, list[int], list[int]]] = [
    (8, 0, 3, 2, [0, 1, 2], [6, 7]),
    (8, 2, 3, 2, [0, 1, 2], [6, 7]),
    (5, 0, 3, 3, [0, 1, 2], [3, 4]),
    (5, 2, 3, 3, [0, 1, 2], [3, 4]),
    (4, 0, 3, 5, [0, 1, 2], [3]),
    (4, 3, 3, 5, [0, 1, 2], [3]),
    (2, 0, 3, 5, [0, 1], []),
    (2, 1, 3, 5, [0, 1], []),
    (14, 4, 11, 11, list(range(11)), [11, 12, 13]),
    (30, 2, 11, 11, list(range(11)), list(range(19, 30))),
]


@pytest.mark.parametrize(("tokens", "padding", "first", "last", "prefix", "suffix"), NOTES)
def test_rows_that_are_prompts_as_in_the_notes(
    tokens: int, padding: int, first: int, last: int, prefix: list[int], suffix: list[int]
) -> None:
    example = row(tokens, 0, right=padding)
    del example["labels"]
    spec = f"f{first}+l{last}"
    assert located(example, spec, prompt="all") == [prefix + suffix]
    terms = located(example, spec, prompt="all", share_weights=False)
    assert [[position for position in term if position >= 0] for term in terms] == [prefix, suffix]
    assert len({len(term) for term in terms}) == 1
    assert located(row(3, 0), "l2", prompt="all") == [[1, 2]]  # labels without an answer contradict nothing


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("right", [0, 3])
def test_everything_that_says_where_the_prompt_ends(left: int, right: int) -> None:
    labelled = row(4, 3, left=left, right=right)
    plain = {name: values for name, values in labelled.items() if name != "labels"}
    marks = [0] * left + [1] * 4 + [0] * (3 + right)
    answers = [0] * (left + 4) + [1] * 3 + [0] * right
    for columns in (
        labelled,
        {**plain, "prompt_lengths": 4},
        {**plain, "prompt_mask": marks},
        {**plain, "prompt_mask": [1] * 4 + [0] * 3},  # one entry per real token, as the collator wants it
        {**plain, "completion_mask": answers},
        {**plain, "completion_mask": [1] * len(answers), "assistant_masks": answers},
        {**plain, "labels": None, "completion_mask": answers},
    ):
        assert located(columns, "f1+l2", share_weights=False) == [[0, -1], [2, 3]], columns
    assert located(plain, "f1+l2", prompt_length=4) == [[0, 2, 3]]


def test_what_is_said_wins_over_labels() -> None:
    assert located({**row(4), "prompt_lengths": 2}, "l1") == [[1]]
    assert located({**row(4), "prompt_mask": [0, 1, 1, 0, 0, 0, 0]}, "f1+l1") == [[1, 2]]


@pytest.mark.parametrize("spec", ["l1", "f3+l5", "prompt", "p[-2:]", "generated", "all-l1"])
def test_without_labels_or_a_length_the_end_of_the_prompt_is_not_guessed(spec: str) -> None:
    unlabelled = {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1]}
    with pytest.raises(PromptBoundaryError, match="prompt='all'") as refused:
        located(unlabelled, spec)
    assert refused.value.code == "positions.no_labels"
    with pytest.raises(PromptBoundaryError):
        located({name: [values] for name, values in unlabelled.items()}, spec)
    assert located(unlabelled, "f2") == [[0, 1]]
    assert located(unlabelled, "all") == [[0, 1, 2, 3]]


def test_an_answer_is_never_taken_for_a_prompt() -> None:
    with pytest.raises(PromptBoundaryError, match="supervise an answer"):
        located(row(4), "l1", prompt="all")
    with pytest.raises(PromptBoundaryError, match="need a prompt"):
        located(row(0), "l1")
    with pytest.raises(PromptBoundaryError, match="one entry per token"):
        located({"input_ids": [5, 6, 7], "labels": [8, 9]}, "l1")
    with pytest.raises(PromptBoundaryError, match="one entry per token"):
        located({"input_ids": [5, 6, 7], "labels": 1}, "l1")
    assert located({"input_ids": [5, 6, 7], "labels": 1}, "l1", prompt="all") == [[2]]
    assert located(row(0), "f2") == [[0, 1]]  # as in a forward: from the start of the sequence


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no tokens"),
        ({"input_ids": []}, "no tokens"),
        ({"text": "hello"}, "it has: text"),
        ({"input_ids": [[]]}, "all padding"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "all padding"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "zeros between its ones"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1]}, "the example has 3"),
        ({"input_ids": [0.5, 0.25]}, "one integer per token"),
        ({"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}, "several packed documents"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]}, "several packed documents"),
        ({"input_ids": [5, 6, 7], "prompt_lengths": 4}, "prompt_lengths"),
        ({"input_ids": [5, 6, 7], "prompt_lengths": -1}, "prompt_lengths"),
        ({"input_ids": [5, 6, 7], "prompt_mask": [1, 1]}, "prompt_mask"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0], "prompt_mask": [1, 0, 1]}, "marks padding"),
        ({"input_ids": [5, 6, 7], "prompt_mask": [1, 1, 0], "prompt_lengths": 2}, "one of them"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(LocationError, match=message):
        located(columns, "f1")


def test_a_single_document_of_a_padded_or_packed_row_is_fine() -> None:
    columns = {**row(3, left=2), "position_ids": [1, 1, 0, 1, 2, 3, 4, 5], "seq_lengths": [6]}
    assert located(columns, "l1") == [[2]]


def test_choices_are_checked() -> None:
    for options in (
        {},
        {"share_weights": False},
        {"positions": "l1", "config": ReftConfig()},
        {"share_weights": True, "config": ReftConfig()},
        {"turns": "first", "config": ReftConfig()},
        {"positions": "l1", "turns": "last"},
        {"positions": "x7"},
        {"positions": "l1", "prompt": "most"},
        {"config": {"positions": "l1"}},
        {"config": ReftConfig(task_type="SEQ_2_SEQ_LM")},
    ):
        with pytest.raises(ValueError, match="Rule") as refused:
            located(row(4), **options)
        assert type(refused.value).__module__ == "peft_reft.hub_format.errors", options
    for options in ({"prompt": "all", "prompt_length": 2}, {"prompt_length": 9}):
        with pytest.raises(LocationError):
            located({"input_ids": [5, 6]}, "l1", **options)


def test_a_config_counts_its_terms_over_its_groups() -> None:
    groups = [{"positions": "f2+l1", "share_weights": False}, {"positions": "prompt"}, {"positions": "generated"}]
    assert located(row(4, 2), config=ReftConfig(interventions=groups)) == [
        [0, 1, -1, -1],
        [3, -1, -1, -1],
        [0, 1, 2, 3],
        [4, 5, -1, -1],
    ]
    assert located(row(4, 2), config=ReftConfig(positions="f2+l1")) == [[0, 1, 3]]


def test_without_a_completion_every_real_token_is_prompt() -> None:
    config = ReftConfig(task_type="SEQ_CLS", positions="f1+l1")
    assert located({"input_ids": [5, 6, 7], "labels": 1}, config=config) == [[0, 2]]
    config = ReftConfig(task_type="TOKEN_CLS", positions="l1")
    assert located({"input_ids": [5, 6, 7], "labels": [-100, 1, 2]}, config=config) == [[2]]


def test_a_batch_is_its_rows() -> None:
    rows = [row(4, left=1), row(1, 2, right=2), row(5, 1)]
    batch = {name: [example[name] for example in rows] for name in rows[0]}
    for options in ({"positions": "f2+l2"}, {"positions": "f2+l2", "share_weights": False}, {"positions": "all"}):
        assert located(batch, **options) == [located(example, **options) for example in rows]
    lengths = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "prompt_lengths": [4, 1, 5]}
    assert located(lengths, "l1") == [[[3]], [[0]], [[4]]]


@pytest.mark.parametrize("form", [torch.tensor, np.array])
def test_columns_may_be_arrays(form: Callable[[Any], Any]) -> None:
    example = {name: form(values) for name, values in row(4, left=2).items()}
    assert located(example, "l2") == [[2, 3]]
    assert located({name: values[None] for name, values in example.items()}, "l2") == [[[2, 3]]]


@pytest.mark.parametrize(
    ("batched", "processes", "form"),
    [(False, 2, None), (True, 2, None), (False, None, "torch"), (True, None, "torch"), (True, None, "numpy")],
)
def test_datasets_map(batched: bool, processes: int | None, form: str | None) -> None:
    rows = [row(prompt, 2, left=left) for prompt, left in [(1, 5), (4, 2), (6, 0)]]
    work = partial(add_intervention_locations, positions="f2+l2", share_weights=False)
    made = Dataset.from_list(rows).with_format(form).map(work, batched=batched, num_proc=processes).with_format(None)
    assert made["intervention_locations"][:] == [[[0], [-1]], [[0, 1], [2, 3]], [[0, 1], [4, 5]]]
    assert made.remove_columns("intervention_locations")[:] == Dataset.from_list(rows)[:]
    batch = ReftDataCollator(DataCollatorForSeq2Seq(tokenizer()))(list(made))
    assert batch["intervention_locations"].tolist() == [[[5, -1], [-1, -1]], [[2, 3], [4, 5]], [[0, 1], [4, 5]]]


@pytest.mark.parametrize("processes", [None, 2])
def test_a_whole_data_set_is_mapped(processes: int | None) -> None:
    rows = Dataset.from_list([row(4), row(6, 2, left=1)])
    made = add_intervention_locations(rows, "f2+l2", share_weights=False, num_proc=processes)
    assert made["intervention_locations"][:] == [[[0, 1], [2, 3]], [[0, 1], [4, 5]]]
    several = add_intervention_locations(
        DatasetDict(train=rows, test=rows.select([1])), config=ReftConfig(positions="f1")
    )
    assert several["test"]["intervention_locations"][:] == [[[0]]]
    with pytest.raises(ConfigError, match="num_proc"):
        add_intervention_locations(row(4), "f1", num_proc=2)


def test_a_trainer_learns_the_same_from_them_as_from_labels(tmp_path: Path) -> None:
    """And something else from other positions, so it does read the column."""
    made = trainer_for(tmp_path).train_dataset
    by_labels = losses(trainer_for(tmp_path, made, config=reft()))
    same, other = (made.map(partial(add_intervention_locations, positions=spec)) for spec in ("f2+l2", "f1"))
    assert losses(trainer_for(tmp_path, same, kind=ReftSFTTrainer, config=reft())) == by_labels
    assert losses(trainer_for(tmp_path, other, kind=ReftSFTTrainer, config=reft())) != by_labels


def test_it_can_be_pickled() -> None:
    work = partial(add_intervention_locations, config=ReftConfig(positions="l1"), prompt="all")
    assert pickle.loads(pickle.dumps(work))({"input_ids": [5, 6]}) == {"intervention_locations": [[1]]}


def test_nothing_of_the_example_changes() -> None:
    example = {**row(4), "intervention_locations": [[19], [19]]}
    before = copy.deepcopy(example)
    located(example, "l1")
    assert example == before


SPECS = ["f2", "l1", "f3+l5", "l2+f2", "prompt", "p[1:-1]", "generated", "g[0:2]", "all", "all-f1", "f1+generated"]
SPECS += ["tok(<|user|>)", "all-tok(<|user|>)", "f1+tok(<|user|>)+l2"]


@cache
def model_for(config: Callable[[], ReftConfig]) -> PeftModel:
    made = config()
    fields = {name: getattr(made, name) for name in ("positions", "share_weights", "turns", "special_tokens")}
    return reft_model("llama", **fields, intervention="direft").train()


@cache
def config_for(spec: str, share_weights: bool, turns: str) -> Callable[[], ReftConfig]:
    return lambda: ReftConfig(positions=spec, share_weights=share_weights, turns=turns).bind_tokenizer(tokenizer())


def marked_row(pattern: str, left: int, right: int) -> dict[str, list[int]]:
    """`p` is a token of a prompt, `u` a special one, `a` one of an answer; padded on both sides."""
    user = tokenizer().convert_tokens_to_ids("<|user|>")
    ids = [user if mark == "u" else 10 + number for number, mark in enumerate(pattern)]
    labels = [number if mark == "a" else -100 for number, mark in zip(ids, pattern, strict=True)]
    return {
        "input_ids": [0] * left + ids + [0] * right,
        "attention_mask": [0] * left + [1] * len(ids) + [0] * right,
        "labels": [-100] * left + labels + [-100] * right,
    }


ONE_ANSWER = st.builds("{}{}".format, st.text("pu", max_size=6), st.text("a", min_size=1, max_size=3))
PATTERN = st.one_of(ONE_ANSWER, st.lists(ONE_ANSWER, min_size=2, max_size=3).map("".join))
ROWS = st.lists(st.builds(marked_row, PATTERN, st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    spec=st.sampled_from(SPECS),
    share_weights=st.booleans(),
    turns=st.sampled_from(["first", "each"]),
    padding=st.sampled_from(["left", "right"]),
)
def test_a_model_edits_with_them_what_it_edits_by_labels(
    rows: list[dict[str, list[int]]], spec: str, share_weights: bool, turns: str, padding: str
) -> None:
    config = config_for(spec, share_weights, turns)
    model, collate = model_for(config), COLLATORS[padding]()
    by_labels = collate([dict(example) for example in rows])
    try:
        added = [{**example, **add_intervention_locations(example, config=config())} for example in rows]
    except PromptBoundaryError:
        with pytest.raises(PromptBoundaryError):
            model(**by_labels)
        return
    batch = dict(ReftDataCollator(collate)(added))
    del batch["prompt_mask"], batch["labels"]  # nothing but the locations says which tokens
    expected = edited_by(model, "llama", 0, lambda: model(**by_labels))
    assert edited_by(model, "llama", 0, lambda: model(**batch)) == expected
    assert torch.equal(model(**batch).logits, model(**by_labels).logits)  # and each by its own term


def test_special_tokens_by_a_tokenizer_or_a_bound_config() -> None:
    example = marked_row("uppuaa", 1, 0)
    assert located(example, "tok(<|user|>)", tokenizer=tokenizer()) == [[0, 3]]
    config = ReftConfig(positions="l2-tok(<|user|>)")
    assert located(example, config=config, tokenizer=tokenizer()) == [[2]]
    assert config.special_tokens is None
    with pytest.raises(PositionError, match="bound to no tokenizer"):
        located(example, config=config)
    assert located(example, config=config.bind_tokenizer(tokenizer())) == [[2]]
    with pytest.raises(ConfigError, match="names no special token"):
        located(example, "tok(apple)", tokenizer=tokenizer())


def test_each_turn_has_its_prompt() -> None:
    example = marked_row("ppapppaa", 2, 1)
    assert located(example, "f1+l1", turns="each", share_weights=False) == [[0, 3], [1, 5]]
    assert located(example, "f1+l1", turns="first", share_weights=False) == [[0], [1]]
    with pytest.raises(PromptBoundaryError):
        located({"input_ids": example["input_ids"]}, "f1", turns="each")
    assert located({"input_ids": [5, 6, 7]}, "f1+l1", turns="each", prompt="all") == [[0, 2]]


SET = {"input_ids": [[5, 6, 7]], "labels": [[-100, -100, 7]]}


@pytest.mark.parametrize("count", [-1, 1.5, True, "2", [1]], ids=str)
def test_processes_are_counted_in_whole_numbers(count: Any) -> None:
    with pytest.raises(ConfigError, match="num_proc="):
        add_intervention_locations(Dataset.from_dict(SET), "f1", num_proc=count)


@pytest.mark.parametrize("data", [Dataset.from_dict({"input_ids": []}), DatasetDict()], ids=["no rows", "no sets"])
def test_a_spec_is_read_although_there_are_no_rows(data: Any) -> None:
    assert len(add_intervention_locations(data, "f1")) == 0
    with pytest.raises(PositionError):
        add_intervention_locations(data, "zz")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"positions": "f1", "prompt_length": "1"}, "prompt_length is '1'"),
        ({"positions": "f1", "prompt_length": True}, "prompt_length is True"),
        ({"positions": "tok(<x>)", "tokenizer": 5}, "tokenizer is 5"),
    ],
)
def test_arguments_of_other_kinds_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, LocationError), match=told):
        add_intervention_locations({"input_ids": [5, 6, 7]}, **given)
