"""`help(ReftConfig)` lists what the fields with fixed values take, and they take it."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pytest

from peft_reft import ReftConfig
from peft_reft.hub_format.kinds import kind_signature, known_kinds
from peft_reft.hub_format.positions import parse_positions
from peft_reft.interventions import intervention_class
from peft_reft.sites.components import COMPONENTS

PARAMETERS = Path(__file__).parents[2] / "docs" / "parameters.md"
HELP = pydoc.render_doc(ReftConfig, renderer=pydoc.plaintext)
CHOICES = re.sub(r"\n[ |]*", " ", HELP.partition("Choices:")[2].partition("Method resolution order")[0])


def test_no_kind_is_left_out() -> None:
    assert len(ROWS) > 15
    assert f"intervention: one of {len(ROWS)} kinds" in CHOICES


def told(field: str, end: str) -> list[str]:
    """The names that stand behind a field."""
    listed = re.search(rf" {field}: (.*?)\.(?= {end}|\s*$)", CHOICES)
    assert listed is not None, CHOICES
    return listed[1].split(", ")


ROWS = set(re.findall(r"^\| `(\w+)` \|", PARAMETERS.read_text("utf-8"), re.MULTILINE)) & set(known_kinds())
"""The kinds of the page's tables."""


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_every_kind_of_the_page_stands_there_with_its_equation_and_options(kind: str) -> None:
    assert re.search(rf" {kind}: [hz]′ = ", CHOICES)
    for option in kind_signature(kind).options:
        assert re.search(rf" {kind}: [^:]*.*?Options: [^:]*\b{option}=", CHOICES), option
    assert intervention_class(kind).kind == kind


def test_the_names_of_the_other_fields_stand_there_and_are_taken() -> None:
    components = told("component", "positions:")
    assert {"head_output[<n>]", "heads", *COMPONENTS} == set(components)
    for name in components:
        kind = "heads" if name == "heads" else "loreft"
        assert ReftConfig(component=name.replace("<n>", "1"), intervention=kind).component
    for turns in told("turns", "act_fn:"):
        assert ReftConfig(turns=turns).turns == turns
    none, *functions = told("act_fn", "init_weights:")
    assert none == "None"
    assert len(functions) > 5
    for function in functions:
        assert ReftConfig(act_fn=function).act_fn == function
    for start in told("init_weights", "$"):
        value = {"None": None, "True": True, '"paper"': "paper", "False": False}[start]
        assert ReftConfig(init_weights=value).init_weights is value


def test_the_grammar_of_positions_stands_there() -> None:
    told_terms = re.findall(r"'([^']+)'", re.search(r" positions: terms (.*?) turns:", CHOICES)[1])  # type: ignore[index]
    assert {"f<n>", "l<n>", "prompt", "all", "generated", "p[a:b]", "g[a:b]"} <= set(told_terms)
    for example in told_terms[-3:]:
        assert str(parse_positions(example)) == example
