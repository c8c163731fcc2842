"""The grammar: what is understood, how it is printed, and that nothing else is."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import PositionSyntaxError
from peft_reft.hub_format.positions import (
    All,
    First,
    Generated,
    Last,
    Positions,
    Prompt,
    PromptWindow,
    Special,
    parse_positions,
)

from .test_properties import SPEC

PARSED = {
    "f7": Positions((First(7),)),
    "l1": Positions((Last(1),)),
    "f7+l7": Positions((First(7), Last(7))),
    "l7+f7": Positions((Last(7), First(7))),
    "prompt": Positions((Prompt(),)),
    "all": Positions((All(),)),
    "generated": Positions((Generated(),)),
    "g[2:5]": Positions((Generated(2, 5),)),
    "g[2:]": Positions((Generated(2, None),)),
    "p[1:-1]": Positions((PromptWindow(1, -1),)),
    "p[:]": Positions((PromptWindow(None, None),)),
    "p[-4:]": Positions((PromptWindow(-4, None),)),
    "tok(<|im_start|>)": Positions((Special("<|im_start|>"),)),
    "all-tok(<s>)": Positions((All(),), (Special("<s>"),)),
    "f1-l1+p[2:3]-all": Positions((First(1), PromptWindow(2, 3)), (Last(1), All())),
    "tok(a+b)+tok([SEP])": Positions((Special("a+b"), Special("[SEP]"))),
}


@pytest.mark.parametrize("text", PARSED)
def test_a_spec_is_parsed_and_printed_back(text: str) -> None:
    assert parse_positions(text) == PARSED[text]
    printed = str(PARSED[text])
    assert parse_positions(printed) == PARSED[text]
    assert ReftConfig(positions=text).positions == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (" f3 + l5 ", "f3+l5"),
        ("f03", "f3"),
        ("p[ 1 : -1 ]", "p[1:-1]"),
        ("g[:]", "generated"),
        ("g[-0:]", "g[0:]"),
        ("p[007:09]", "p[7:9]"),
        ("p[:]", "p[:]"),
        ("\tf1 + l1\n", "f1+l1"),
        ("f1-l1+l2", "f1+l2-l1"),
        ("all\t- tok( <s> )", "all-tok(<s>)"),
    ],
)
def test_printing_is_canonical(text: str, printed: str) -> None:
    assert str(parse_positions(text)) == printed
    assert str(parse_positions(printed)) == printed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SPEC)
def test_round_trip(spec: str) -> None:
    parsed = parse_positions(spec)
    assert parse_positions(str(parsed)) == parsed
    assert str(parse_positions(str(parsed))) == str(parsed)


TYPOS = [
    "", " ", "+", "-", "f", "l", "7", "f-7", "f7l7", "f7,l7", "f7 l7", "f7++l7", "f7+", "+f7", "-f7", "f7-", "f7&l7",
    "F7", "L7", "x7", "f7+x7", "f0", "l0", "f7+l0", "f1.5", "f7+f7", "all-all", "f3+l5-f3", "p", "p[1]", "p[1:2:3]",
    "p[a:b]", "p[3:1]", "p[2:2]", "p[-1:-3]", "p(1:2)", "p[1:2", "g[-1:]", "g[:-2]", "g[5:2]", "g1", "prompts", "al",
    "All", "gen", "tok", "tok()", "tok(<s>", "tok<s>", "tok((a))", "f99999999999", "p[:0]", "p[-2:0]", "g[:0]",
    "f" + "9" * 400, "l²", "first7",
    "p[-:1]", "p[:-]", "p[- 1:]", "p[:-0]", "f1\u00a0+l1", "\u2003f1",
    "f7+l7;", "f7\n+q", "none", "last",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPOS)
def test_a_typo_is_an_error_that_shows_the_grammar(text: str) -> None:
    for parse in (parse_positions, lambda typo: ReftConfig(positions=typo)):
        with pytest.raises(PositionSyntaxError) as caught:
            parse(text)
        message = str(caught.value)
        assert "'f<n>'" in message
        assert "f7+l7" in message
        assert text[:20].strip().splitlines()[:1] == [] or repr(text)[1:15] in message
        assert len(message) < 1000


@pytest.mark.parametrize("value", [None, 7, ["f7"], b"f7", ("f7", "l7"), True])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(PositionSyntaxError, match="not a string"):
        parse_positions(value)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=12), st.text("flpg[]:+-0123 tok()al", max_size=12)))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Never another error, never a meaning that is lost in printing."""
    try:
        parsed = parse_positions(text)
    except PositionSyntaxError:
        return
    assert parsed.terms
    assert parse_positions(str(parsed)) == parsed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SPEC, st.data())
def test_a_changed_character_is_another_spec_or_an_error(spec: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(spec) - 1))
    changed = spec[:place] + data.draw(st.sampled_from("xq;,|&*!_")) + spec[place + 1 :]
    if "tok(" in spec and "tok(<s>)" not in changed:  # the token's own name may be any other
        with contextlib.suppress(PositionSyntaxError):
            assert parse_positions(changed) != parse_positions(spec)
        return
    with pytest.raises(PositionSyntaxError):
        parse_positions(changed)
