"""What a spec means on a row: a table of literal answers, for the resolver and for the slow reference alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.inputs import CallInputs, Explicit
from peft_reft.runtime.resolve import unit_masks
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.views import AdapterView

from .reference import edited_tokens

# A row is drawn: "." padding, "p" a token whose label is masked, "a" an answer's token, "|" the start of another
# sequence. Expected is drawn below it: a digit is the term that edits the token, "-" no edit.
CASES = [
    # one sequence without padding
    ("f2", "ppppaaa", "00-----"),
    ("l2", "ppppaaa", "--00---"),
    ("f1+l2", "ppppaaa", "0-11---"),
    ("l2+f1", "ppppaaa", "1-00---"),
    ("prompt", "ppppaaa", "0000---"),
    ("all", "ppppaaa", "0000000"),
    ("generated", "ppppaaa", "----000"),
    ("g[1:]", "ppppaaa", "-----00"),
    ("g[:2]", "ppppaaa", "----00-"),
    ("g[1:2]+f1", "ppppaaa", "1----0-"),
    ("p[1:3]", "ppppaaa", "-00----"),
    ("p[-3:-1]", "ppppaaa", "-00----"),
    ("p[1:]", "ppppaaa", "-000---"),
    ("p[:-1]", "ppppaaa", "000----"),
    ("p[1:-1]", "ppppaaa", "-00----"),
    ("p[-9:1]", "ppppaaa", "0------"),
    ("p[2:9]", "ppppaaa", "--00---"),
    # padding: left, right, both
    ("f2", "...ppppaa", "---00----"),
    ("l2", "ppppaa...", "--00-----"),
    ("f1+l1", "..pppa.", "--0-1--"),
    ("all", "..ppa..", "--000--"),
    ("generated", "..ppaa..", "----00--"),
    # prompts shorter than what is asked for: the first term takes its tokens, the second the rest
    ("f3+l5", "ppppaa", "0001--"),
    ("l5+f3", "ppppaa", "0000--"),
    ("f3+l5", "ppaa", "00--"),
    ("f9", "..ppa", "--00-"),
    ("l9", "..ppa", "--00-"),
    ("f2+l2", "paaa", "0---"),
    ("prompt+f2", "ppa", "00-"),
    # exclusions
    ("all-f1", "ppaa", "-000"),
    ("all-l1-f1", "pppaa", "-0-00"),
    ("prompt-p[1:-1]", "ppppa", "0--0-"),
    ("f3+l2-f1", "ppppaa", "-001--"),
    ("all-generated", "ppaa", "00--"),
    ("l3-l1", "ppppaa", "-00---"),
    # several supervised spans: the prompt ends before the first
    ("l1", "ppappa", "-0----"),
    ("generated", "ppappa", "--0000"),
    # a row without supervised labels is all prompt
    ("l2", "..pppp", "----00"),
    # no prompt: f counts from the start of the sequence
    ("f2", "aaaa", "00--"),
    ("f2", "..aaaa", "--00--"),
    ("g[:1]", "aaaa", "0---"),
    # packed rows: each sequence by itself
    ("f1+l1", "pppaa|ppa|pppp", "0-1--01-0--1"),
    ("f2", "ppa|pppa", "00-00--"),
    ("l2", "pppa|ppa", "-00-00-"),
    ("all", "ppa|pa", "00000"),
    ("generated", "ppa|ppaa", "--0--00"),
    ("p[-1:]+g[:1]", "ppa|ppaa", "-01-01-"),
    # in a packed row a masked first label is no prompt
    ("f1", "paa|paa", "0--0--"),
    ("generated", "paa|ppa", "000--0"),
    # and a masked sequence of one token is the row's padding
    ("f1+l1", "ppa|p|p|p", "01----"),
    ("all", "ppa|p|p", "000--"),
]

TURNS = [
    # every run before an answer is a prompt of its own
    ("l1", "ppaappa", "-0---0-"),
    ("l2", "pppaappaa", "-00--00--"),
    ("f1+l1", "pppaappp" + "a", "0-1--0-1-"),
    ("l3", "ppaapa", "00--0-"),
    ("prompt", "ppapaa", "00-0--"),
    ("generated", "ppapaa", "--0-00"),
    ("g[:1]", "ppaapaa", "--0--0-"),
    ("p[1:]", "pppappa", "-00--0-"),
    ("f1+g[1:]", "ppaapaa", "0--10-1"),
    ("all-l1", "ppapa", "0-0-0"),
    # what follows the last answer is no prompt
    ("l1", "ppaapppa" + "pp", "-0----0---"),
    # padding on either side, packed rows
    ("l1", "..ppapa..", "---0-0---"),
    ("l1+f1", "pppapp" + "a|ppapa|ppaa", "1-0-10-10-0-10--"),
    # a sequence that starts with an answer has no prompt, a later run does not give it one
    ("f1", "aapa", "0---"),
    # a row without supervised labels is all prompt
    ("l2", "..pppp", "----00"),
    # one turn is one turn
    ("f3+l5", "ppppaa", "0001--"),
]
"""With `turns="each"`."""


def parse(drawn: str) -> dict[str, Any]:
    """Real flags, labels and position ids of a drawn row."""
    real, labels, ids, position = [], [], [], 0
    for mark in drawn:
        if mark == "|":
            position = 0
            continue
        real.append(mark != ".")
        labels.append(7 if mark == "a" else -100)
        ids.append(position)
        position += mark != "."
    return {"real": [real], "labels": [labels], "position_ids": [ids], "packed": "|" in drawn}


def drawn_answer(tokens: list[set[tuple[int, int]]], width: int) -> str:
    answer = ["-"] * width
    for term, found in enumerate(tokens):
        for _, column in found:
            assert answer[column] == "-"
            answer[column] = str(term)
    return "".join(answer)


def call_of(row: dict[str, Any], **more: Any) -> CallInputs:
    """The call that a row stands for; packed rows come without a mask."""
    ids = torch.tensor(row["position_ids"])
    return CallInputs(
        *ids.shape,
        ids.device,
        attention_mask=None if row["packed"] else torch.tensor(row["real"]).long(),
        position_ids=ids if row["packed"] else None,
        labels=torch.tensor(row["labels"]),
        **more,
    )


TOKEN, TOKEN_ID = "<s>", 3


def resolved(
    call: CallInputs, spec: str, situation: Situation, *, share: bool = False, turns: str = "first"
) -> list[set[tuple[int, int]]]:
    """The resolver's answer as sets of (row, column), one per unit; `tok(<s>)` is the id 3."""
    groups = ReftConfig(positions=spec, share_weights=share, turns=turns).groups()
    view = AdapterView("default", groups, {TOKEN: TOKEN_ID})
    masks = unit_masks(call, [view], situation)
    assert list(masks) == [(0, number) for number in range(view.units)]
    for unit in masks.values():
        assert unit.mask.dtype == torch.bool
        assert unit.mask.shape == (call.batch, call.length)
        assert unit.width is None or int(unit.mask.sum(1).max()) <= unit.width
    return [{tuple(token) for token in unit.mask.nonzero().tolist()} for unit in masks.values()]  # type: ignore[misc]


@pytest.mark.parametrize(("spec", "drawn", "expected"), CASES)
def test_the_reference_gives_the_drawn_answer(spec: str, drawn: str, expected: str) -> None:
    row = parse(drawn)
    if not row["packed"]:
        row["position_ids"] = None
    assert drawn_answer(edited_tokens(spec, **row), len(expected)) == expected


@pytest.mark.parametrize(("spec", "drawn", "expected"), CASES)
def test_the_resolver_gives_the_drawn_answer(spec: str, drawn: str, expected: str) -> None:
    row = parse(drawn)
    assert drawn_answer(resolved(call_of(row), spec, Situation()), len(expected)) == expected
    tied = resolved(call_of(row), spec, Situation(), share=True)
    assert tied == [{(0, column) for column, mark in enumerate(expected) if mark != "-"}]


@pytest.mark.parametrize(("spec", "drawn", "expected"), TURNS)
def test_every_turn_has_its_own_prompt(spec: str, drawn: str, expected: str) -> None:
    row = parse(drawn)
    assert drawn_answer(resolved(call_of(row), spec, Situation(), turns="each"), len(expected)) == expected
    mask = [[int(mark == "p" and "a" in later) for mark, later in _with_rest(drawn)]]
    if "aapa" not in drawn and "a" in drawn and "|" not in drawn:
        said = Situation(explicit=Explicit(prompt_mask=torch.tensor(mask)))
        plain = call_of({**row, "labels": [[-100] * len(expected)]})
        assert drawn_answer(resolved(plain, spec, said, turns="each"), len(expected)) == expected
    if not row["packed"]:
        row["position_ids"] = None
    assert drawn_answer(edited_tokens(spec, **row, turns="each"), len(expected)) == expected


def _with_rest(drawn: str) -> list[tuple[str, str]]:
    return [(mark, drawn[place:]) for place, mark in enumerate(drawn)]


@pytest.mark.parametrize("spec", ["l1", "f1", "prompt", "generated", "g[1:2]", "p[0:1]", "all-f1"])
@pytest.mark.parametrize("width", [None, 4])
def test_turns_that_nothing_tells_are_an_error(spec: str, width: int | None) -> None:
    """In a prefill and in `generate` a conversation looks like one prompt."""
    call = CallInputs(1, 4, torch.device("cpu"))
    with pytest.raises(PromptBoundaryError, match="prompt_mask") as caught:
        resolved(call, spec, Situation(prompt_width=width), turns="each")
    assert caught.value.code == "positions.turns"
    resolved(call, "all", Situation(prompt_width=width), turns="each")  # the same in every turn
    resolved(call, spec, Situation(has_completion=False), turns="each")  # no turns at all
    resolved(call, spec, Situation(role="encoder"), turns="each")


@pytest.mark.parametrize(("spec", "drawn", "expected"), [case for case in CASES if "|" in case[1]])
def test_offsets_say_what_position_ids_say(spec: str, drawn: str, expected: str) -> None:
    row = parse(drawn)
    offsets = [0, *torch.tensor([len(part) for part in drawn.split("|")]).cumsum(0).tolist()]
    call = call_of({**row, "packed": False}, cu_seq_lens=torch.tensor(offsets, dtype=torch.int32))
    assert drawn_answer(resolved(call, spec, Situation()), len(expected)) == expected


def test_a_task_without_completion_ignores_labels() -> None:
    call = call_of(parse("..ppaa"))
    assert resolved(call, "l2", Situation(has_completion=False)) == [{(0, 4), (0, 5)}]


def test_an_encoder_ignores_labels() -> None:
    call = call_of(parse("..ppaa"))
    assert resolved(call, "l2", Situation(role="encoder")) == [{(0, 4), (0, 5)}]


def test_the_first_run_of_a_prompt_mask_is_the_prompt() -> None:
    call = call_of(parse(".pppppp"))
    said = Explicit(prompt_mask=torch.tensor([[0, 0, 1, 1, 0, 1, 1]]))
    assert resolved(call, "f1+l1", Situation(explicit=said)) == [{(0, 2)}, {(0, 3)}]
    assert resolved(call, "generated", Situation(explicit=said)) == [{(0, 4), (0, 5), (0, 6)}]


def test_one_position_for_all_columns_is_taken_as_the_model_takes_it() -> None:
    """A model broadcasts `position_ids` of one column: the same as if every column had it."""
    real, ids = torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)
    view = AdapterView("a", tuple(ReftConfig(positions="f2").groups()))
    masks = [
        unit_masks(CallInputs(2, 4, real.device, attention_mask=real, position_ids=given), [view], Situation())
        for given in (ids, ids.expand(2, 4))
    ]
    assert torch.equal(masks[0][0, 0].mask, masks[1][0, 0].mask)
