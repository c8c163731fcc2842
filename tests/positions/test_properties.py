"""The resolver against the slow reference, on batches that hypothesis makes up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PromptBoundaryError
from peft_reft.hub_format.positions import All, Last, Prompt, PromptWindow, Special, parse_positions
from peft_reft.interventions import intervention_class
from peft_reft.positions import location_masks, plan_rows
from peft_reft.runtime import Edit, apply_edits
from peft_reft.runtime.inputs import CallInputs, Explicit
from peft_reft.runtime.situation import Situation

from .reference import edited_tokens, prompt_of, split_row
from .test_cases import TOKEN, TOKEN_ID, resolved

fast = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

COUNT = st.integers(1, 6)
BOUND = st.one_of(st.none(), st.integers(-6, 6))
INDEX = st.one_of(st.none(), st.integers(0, 6))


def _window(letter: str, start: int | None, stop: int | None) -> str | None:
    if stop == 0 or (start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop):
        return None
    return f"{letter}[{'' if start is None else start}:{'' if stop is None else stop}]"


TERM = st.one_of(
    st.builds("f{}".format, COUNT),
    st.builds("l{}".format, COUNT),
    st.sampled_from(["prompt", "all", "generated", f"tok({TOKEN})"]),
    st.builds(lambda start, stop: _window("p", start, stop), BOUND, BOUND),
    st.builds(lambda start, stop: _window("g", start, stop), INDEX, INDEX),
).filter(bool)
SPEC = st.lists(TERM, min_size=1, max_size=4, unique_by=lambda term: str(parse_positions(term))).flatmap(
    lambda terms: st.integers(1, len(terms)).map(
        lambda kept: "+".join(terms[:kept]) + "".join(f"-{t}" for t in terms[kept:])
    )
)


@dataclass
class Batch:
    """Rows as lists, and how they are said to the resolver."""

    real: list[list[bool]]
    labels: list[list[int]] | None = None
    mask: list[list[int]] | None = None
    lengths: list[int] | None = None
    position_ids: list[list[int]] | None = None
    offsets: list[int] | None = None
    masked: bool = True
    turns: str = "first"
    special: list[list[bool]] | None = None

    @property
    def packed(self) -> bool:
        """A packed row comes without an attention mask."""
        return self.offsets is not None or (self.position_ids is not None and not self.masked)

    def told(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "mask": self.mask,
            "lengths": self.lengths,
            "position_ids": self.position_ids,
            "offsets": self.offsets,
            "packed": self.packed,
            "turns": self.turns,
            "special": self.special,
        }

    def call(self) -> CallInputs:
        real = torch.tensor(self.real)
        return CallInputs(
            *real.shape,
            real.device,
            attention_mask=real.long() if self.masked else None,
            position_ids=tensor_of(self.position_ids),
            cu_seq_lens=None if self.offsets is None else torch.tensor(self.offsets, dtype=torch.int32),
            labels=tensor_of(self.labels),
            input_ids=None if self.special is None else torch.where(torch.tensor(self.special), TOKEN_ID, 9),
        )

    def explicit(self) -> Explicit:
        return Explicit(prompt_mask=tensor_of(self.mask), prompt_lengths=tensor_of(self.lengths))


def tensor_of(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)


@st.composite
def labels_for(draw: st.DrawFn, tokens: int) -> list[int]:
    """Labels of a sequence: mostly a masked prompt before supervised tokens, else anything."""
    if draw(st.integers(0, 3)) == 3:
        return draw(st.lists(st.sampled_from([-100, 7]), min_size=tokens, max_size=tokens))
    prompt = draw(st.integers(0, tokens))
    return [-100] * prompt + [7] * (tokens - prompt)


@st.composite
def marks_for(draw: st.DrawFn, tokens: int) -> list[int]:
    """A prompt mask of a sequence: mostly one run from the start."""
    return [int(label == -100) for label in draw(labels_for(tokens))]


def choose_tokens(draw: st.DrawFn, batch: Batch) -> None:
    """Say how turns count, and which tokens are special."""
    batch.turns = draw(st.sampled_from(["first", "each"]))
    batch.special = [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in batch.real]


@st.composite
def padded_batches(draw: st.DrawFn) -> Batch:
    """Rows padded left, right or on both sides, with or without labels or a stated prompt."""
    shapes = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7)), min_size=1, max_size=3))
    width = max(map(sum, shapes)) + draw(st.integers(0, 2))
    labelled = draw(st.booleans())
    stated = draw(st.sampled_from(["nothing", "mask", "lengths"]))
    batch = Batch([[left <= column < left + tokens for column in range(width)] for left, tokens in shapes])

    def padded(rows: list[list[int]], filling: int) -> list[list[int]]:
        return [
            [filling] * left + row + [filling] * (width - left - tokens)
            for row, (left, tokens) in zip(rows, shapes, strict=True)
        ]

    if labelled:
        batch.labels = padded([draw(labels_for(tokens)) for _, tokens in shapes], -100)
    if stated == "mask":
        batch.mask = padded([draw(marks_for(tokens)) for _, tokens in shapes], 0)
    if stated == "lengths":
        batch.lengths = [draw(st.integers(0, tokens)) for _, tokens in shapes]
    choose_tokens(draw, batch)
    if draw(st.booleans()):
        batch.position_ids = padded([list(range(tokens)) for _, tokens in shapes], draw(st.integers(0, 1)))
    return batch


@st.composite
def packed_batches(draw: st.DrawFn) -> Batch:
    """Rows of several sequences, told by position ids, by offsets, or by ids beside a mask of ones."""
    form = draw(st.sampled_from(["with mask", "position_ids", "offsets", "both"]))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rows = [lengths]
    if form in ("with mask", "position_ids"):  # another row of the same width, cut in the same places backwards
        rows += draw(st.sampled_from([[], [lengths[::-1]]]))
    batch = Batch([[True] * sum(lengths) for _ in rows], masked=form == "with mask")
    if form != "offsets":
        batch.position_ids = [[place for tokens in row for place in range(tokens)] for row in rows]
    if form in ("offsets", "both"):
        batch.offsets = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    if draw(st.booleans()):
        batch.labels = [[label for tokens in row for label in draw(labels_for(tokens))] for row in rows]
    if draw(st.booleans()):
        batch.mask = [[mark for tokens in row for mark in draw(marks_for(tokens))] for row in rows]
    choose_tokens(draw, batch)
    return batch


def lacks_turns(spec: str, batch: Batch) -> bool:
    """Whether the spec speaks of turns and nothing says where they are."""
    parsed = parse_positions(spec)
    told = batch.labels is not None or batch.mask is not None or batch.lengths is not None
    speaks = any(not isinstance(term, (All, Special)) for term in (*parsed.terms, *parsed.exclusions))
    return batch.turns == "each" and speaks and not told


def lacks_a_prompt(spec: str, batch: Batch) -> bool:
    """Whether the spec needs a prompt and some sequence has none."""
    parsed = parse_positions(spec)
    if not any(isinstance(term, (Last, Prompt, PromptWindow)) for term in (*parsed.terms, *parsed.exclusions)):
        return False
    # 'all' marks every sequence that counts, 'prompt' those with a prompt
    counted, prompts = (edited_tokens(term, batch.real, **batch.told()) for term in ("all", "prompt"))
    for row, flags in enumerate(batch.real):
        ids = None if batch.position_ids is None else batch.position_ids[row]
        for sequence in split_row(flags, position_ids=ids, offsets=batch.offsets):
            tokens = {(row, column) for column in sequence}
            if counted and tokens & counted[0] and not (prompts and tokens & prompts[0]):
                return True
    return False


def check(spec: str, batch: Batch) -> None:
    situation = Situation(explicit=batch.explicit())
    call, turns = batch.call(), batch.turns
    if lacks_turns(spec, batch):
        with pytest.raises(PromptBoundaryError, match="turns='each'"):
            resolved(call, spec, situation, turns=turns)
        return
    if lacks_a_prompt(spec, batch):
        with pytest.raises(PromptBoundaryError, match="need a prompt"):
            resolved(call, spec, situation, turns=turns)
        return
    terms = len(parse_positions(spec).terms)
    expected = edited_tokens(spec, batch.real, **batch.told()) or [set()] * terms
    assert resolved(call, spec, situation, turns=turns) == expected
    assert resolved(call, spec, situation, share=True, turns=turns) == [set().union(*expected)]
    assert sum(map(len, expected)) == len(set().union(*expected))  # no token belongs to two terms


@fast
@given(SPEC, padded_batches())
def test_padded_batches(spec: str, batch: Batch) -> None:
    check(spec, batch)


@fast
@given(SPEC, packed_batches())
def test_packed_batches(spec: str, batch: Batch) -> None:
    check(spec, batch)


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[list[bool]], int, int, int, list[int] | None]:
    """Left-padded rows, the prompt's width, and a forward over some slots: (real, width, past, length, lengths)."""
    rows, width, new = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(0, 4))
    firsts = [draw(st.integers(0, width - 1)) for _ in range(rows)]
    real = [[column >= first for column in range(width + new)] for first in firsts]
    past = draw(st.integers(0, width + new - 1))
    length = draw(st.integers(1, width + new - past))
    lengths = [draw(st.integers(1, width - first)) for first in firsts] if draw(st.booleans()) else None
    return real, width, past, length, lengths


@fast
@given(SPEC, generations())
def test_a_forward_of_a_generation_sees_its_window_of_the_whole(spec: str, generation: Any) -> None:
    real, width, past, length, lengths = generation
    flags = torch.tensor(real)
    situation = Situation(
        prompt_width=width,
        prompt_real=flags[:, :width],
        explicit=Explicit(prompt_lengths=tensor_of(lengths)),
    )
    special = (flags.cumsum(1) % 3 == 1).tolist()
    ids = torch.where(torch.tensor(special), TOKEN_ID, 9)[:, past : past + length]
    call = CallInputs(len(real), length, flags.device, past=past, cached=True, input_ids=ids)
    whole = edited_tokens(spec, real, width=width, lengths=lengths, special=special)
    expected = [{(row, column - past) for row, column in term if past <= column < past + length} for term in whole]
    assert resolved(call, spec, situation) == expected


@fast
@given(st.data())
def test_stated_locations(data: st.DataObject) -> None:
    rows, width, terms, k = (data.draw(st.integers(1, bound)) for bound in (3, 7, 3, 4))
    firsts = [data.draw(st.integers(0, width - 1)) for _ in range(rows)]
    real = [[column >= first for column in range(width)] for first in firsts]
    index = st.integers(-2, width)
    said = [[[data.draw(index) for _ in range(k)] for _ in range(terms)] for _ in range(rows)]
    allowed = all(
        column == -1 or (0 <= column < width and real[row][column])
        for row, by_term in enumerate(said)
        for columns in by_term
        for column in columns
    )
    call = lambda: location_masks(torch.tensor(said), torch.tensor(real), terms=terms)  # noqa: E731
    if not allowed:
        with pytest.raises(LocationError):
            call()
        return
    expected: list[set[tuple[int, int]]] = []
    for term in range(terms):
        named = {(row, column) for row in range(rows) for column in said[row][term] if column >= 0}
        expected.append(named - set().union(*expected))
    assert [{tuple(token) for token in mask.nonzero().tolist()} for mask in call()] == expected


@fast
@given(st.data())
def test_exact_and_bounded_plans_give_the_same_edit(data: st.DataObject) -> None:
    batch, length, units = (data.draw(st.integers(1, bound)) for bound in (3, 6, 3))
    flag = st.booleans()
    masks = [torch.tensor([[data.draw(flag) for _ in range(length)] for _ in range(batch)]) for _ in range(units)]
    bound = sum(int(mask.sum(1).max()) for mask in masks)
    hidden = torch.arange(batch * length * 2, dtype=torch.float64).reshape(batch, length, 2).sin()
    kinds = [intervention_class("direft")(2, 1, init_weights=False).double() for _ in masks]
    expected = hidden.clone()
    for unit, mask in zip(kinds, masks, strict=True):
        expected = expected + torch.where(mask[..., None], unit(hidden), 0.0)
    edits = [Edit(unit, None, 1.0) for unit in kinds]
    for exact, width in ((True, None), (True, bound), (False, bound), (False, bound + 1), (False, None)):
        plan = plan_rows(masks, width, exact=exact)
        assert plan.rows.unique().numel() == plan.rows.numel()
        edited = apply_edits(hidden, plan, edits)
        torch.testing.assert_close(edited, expected)
        untouched = ~torch.stack(masks).any(0)
        assert torch.equal(edited[untouched], hidden[untouched])
    assert plan_rows(masks, bound, exact=True).rows.numel() == int(torch.stack(masks).any(0).sum())
    assert plan_rows(masks, bound, exact=False).rows.numel() == batch * min(bound, length)


def test_the_reference_agrees_with_itself_on_prompts() -> None:
    """One literal case per way to say a prompt."""
    sequence = [2, 3, 4, 5, 6]
    assert prompt_of(sequence) == sequence
    assert prompt_of(sequence, labels=[-100, -100, -100, -100, 7, -100, 7]) == [2, 3]
    assert prompt_of(sequence, mask=[0, 0, 0, 1, 1, 0, 1]) == [3, 4]
    assert prompt_of(sequence, length=2) == [2, 3]
    assert prompt_of(sequence, width=4) == [2, 3]
    assert prompt_of(sequence, labels=[-100, -100, -100, 7, 7, 7, 7], packed=True) == []
