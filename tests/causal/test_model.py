"""Causal models: runs, interventions, interchange, distributions, refusals."""

from __future__ import annotations

import functools
from typing import Any
from xml.etree import ElementTree

import pytest

from peft_reft.causal import CausalModel, Distribution
from peft_reft.hub_format.errors import CausalModelError, ReftError

DIGITS: dict[str, Any] = {name: range(10) for name in "XYZ"}


def total() -> CausalModel:
    """S1 = X + Y, S2 = S1 + Z, given in the wrong order."""
    return CausalModel({"S2": lambda S1, Z: S1 + Z, "S1": lambda X, Y: X + Y}, inputs=DIGITS)


def test_parents_are_the_argument_names_and_come_first() -> None:
    model = total()
    assert model.parents == {"X": (), "Y": (), "Z": (), "S2": ("S1", "Z"), "S1": ("X", "Y")}
    assert model.variables.index("S1") < model.variables.index("S2")
    assert model.output == "S2"


def test_a_run_gives_every_variable() -> None:
    assert total().run({"X": 1, "Y": 2, "Z": 3}) == {"X": 1, "Y": 2, "Z": 3, "S1": 3, "S2": 6}


def test_an_intervention_cuts_a_variable_off_its_parents() -> None:
    found = total().intervene({"X": 1, "Y": 2, "Z": 3}, {"S1": 10, "X": 9})
    assert (found["X"], found["S1"], found["S2"]) == (9, 10, 13)


def test_an_interchange_takes_each_variable_from_its_own_source() -> None:
    """The notes' example, and two variables from two sources."""
    base, source, other = ({"X": a, "Y": b, "Z": c} for a, b, c in ((1, 2, 3), (4, 5, 6), (7, 7, 7)))
    assert total().interchange(base, {"S1": source})["S2"] == 4 + 5 + 3
    assert total().interchange(base, {"S1": source, "Z": other})["S2"] == 4 + 5 + 7
    assert total().interchange(base, {"S1": base}) == total().run(base)


def test_a_constant_argument_is_no_parent() -> None:
    model = CausalModel({"S": lambda X, step=3: X + step}, inputs={"X": None})
    assert model.parents["S"] == ("X",)
    assert model.run({"X": 4})["S"] == 7
    bound = CausalModel({"S": functools.partial(lambda X, step: X + step, step=5)}, inputs={"X": None})
    assert bound.run({"X": 1})["S"] == 6


def test_descendants() -> None:
    assert total().descendants("X") == {"S1", "S2"}
    assert total().descendants("Z") == {"S2"}
    assert total().descendants("S2") == set()


def test_every_input_and_samples() -> None:
    small = CausalModel({"O": lambda P, Q: P and Q}, inputs={"P": (False, True), "Q": (False, True)})
    assert len(list(small.every_input())) == 4
    drawn = total().sample_inputs(200, seed=3)
    assert drawn == total().sample_inputs(200, seed=3) != total().sample_inputs(200, seed=4)
    assert {row["X"] for row in drawn} == set(range(10))


def test_distributions_are_exact_and_remember_what_they_share() -> None:
    """A and B copy one coin: they are never different, though each is uncertain."""
    coin = {"coin": lambda bias: Distribution({1: bias, 0: 1 - bias})}
    model = CausalModel(
        {
            **coin,
            "A": lambda coin: coin,
            "B": lambda coin: coin,
            "same": lambda A, B: A == B,
            "all": lambda same, A: A,
        },
        inputs={"bias": None},
        output="all",
    )
    found = model.run({"bias": 0.25})
    assert dict(found["A"]) == {1: 0.25, 0: 0.75}
    assert found["same"] is True
    apart = model.interchange({"bias": 0.25}, {"A": {"bias": 0.5}})
    assert apart["same"][True] == pytest.approx(0.5 * 0.25 + 0.5 * 0.75)
    assert dict(model.intervene({"bias": 0.25}, {"A": Distribution.uniform([1, 0])})["all"]) == {1: 0.5, 0: 0.5}


def test_a_distribution_of_an_input() -> None:
    found = total().run({"X": Distribution.uniform([0, 1]), "Y": Distribution.uniform([0, 1]), "Z": 0})
    assert dict(found["S2"]) == {0: 0.25, 1: 0.5, 2: 0.25}
    assert found["Z"] == 0


@pytest.mark.parametrize("table", [{}, {1: 0.5}, {1: 1.5, 2: -0.5}, {1: float("nan")}])
def test_what_is_no_distribution_is_refused(table: dict[int, float]) -> None:
    with pytest.raises(CausalModelError, match="sum to 1"):
        Distribution(table)


@pytest.mark.parametrize(
    ("functions", "arguments", "says"),
    [
        ({"A": lambda B: B, "B": lambda C: C, "C": lambda A: A}, {"output": "A"}, "A → C → B → A form a cycle"),
        ({"A": lambda A: A}, {}, "A → A form a cycle"),
        ({"S": lambda X, W: X}, {}, "parent 'W', which is no variable"),
        ({"S": lambda X, Y=3: X}, {}, "default for its parent 'Y'"),
        ({"S": lambda *X: X}, {}, r"argument '\*X'"),
        ({"S": lambda X, /: X}, {}, "argument 'X'"),
        ({"S": print}, {}, "argument"),
        ({"S": max}, {}, "does not say its arguments"),
        ({"X": lambda Y: Y}, {}, "is an input and has a function"),
        ({"S 1": lambda X: X}, {}, "name can be a Python argument"),
        ({"A": lambda X: X, "B": lambda X: X}, {}, "output cannot be told: A, B"),
        ({}, {}, "output cannot be told"),
        ({"A": lambda X: X}, {"output": "X"}, "output='X'"),
    ],
)
def test_a_bad_graph_is_refused(functions: dict[str, Any], arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CausalModelError, match=says) as caught:
        CausalModel(functions, inputs={"X": range(3), "Y": range(3)}, **arguments)
    assert isinstance(caught.value, ReftError)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"X": 1, "Y": 2}, "the inputs are: X, Y, Z"),
        ({"X": 1, "Y": 2, "Z": 3, "S1": 4}, "the inputs are: X, Y, Z"),
        ({"X": 1, "Y": 2, "Z": 10}, "input Z=10"),
        ({"X": 1, "Y": 2, "Z": Distribution({10: 1.0})}, "input Z=10"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(CausalModelError, match=says):
        total().run(inputs)


def test_unknown_variables_are_refused() -> None:
    row = {"X": 1, "Y": 2, "Z": 3}
    for call in (
        lambda: total().intervene(row, {"S3": 1}),
        lambda: total().interchange(row, {"S3": row}),
        lambda: total().descendants("S3"),
    ):
        with pytest.raises(CausalModelError, match="'S3' is no variable"):
            call()


def test_a_function_that_fails_says_where() -> None:
    model = CausalModel({"S": lambda X: 1 / X}, inputs={"X": (0, 1)})
    with pytest.raises(CausalModelError, match=r"'S' failed on \{'X': 0\}") as caught:
        model.run({"X": 0})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_model_without_domains_cannot_be_sampled() -> None:
    model = CausalModel({"S": lambda X: X}, inputs={"X": None})
    with pytest.raises(CausalModelError, match="values of input 'X' are not known"):
        model.sample_inputs(2, seed=0)


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("networkx")
    model = total()
    values = model.run({"X": 1, "Y": 2, "Z": 3})
    graph = model.to_networkx()
    assert set(graph.edges) == {("X", "S1"), ("Y", "S1"), ("S1", "S2"), ("Z", "S2")}
    assert graph.nodes["S2"] == {"layer": 2, "role": "output"}
    drawn = {text.get_text() for text in model.draw(values).texts}
    assert {"S1 = 3", "S2 = 6"} <= drawn
    dot = model.to_dot(values)
    assert 'S2 [shape=doublecircle, label="S2 = 6"];' in dot
    assert "S1 -> S2;" in dot
    assert 'label="S1"' in model.to_dot()


def test_a_notebook_shows_the_graph_from_inputs_to_output() -> None:
    model = CausalModel({"A": lambda P: P, "V": lambda A, Q: A and Q}, inputs={"P": (0, 1), "Q": (0, 1)})
    root = ElementTree.fromstring(model._repr_svg_())
    places = {
        part.text: (float(part.get("x", 0)), float(part.get("y", 0)))
        for part in root.iter("{http://www.w3.org/2000/svg}text")
    }
    assert set(places) == {"P", "Q", "A", "V"}
    assert places["P"][0] == places["Q"][0] < places["A"][0] < places["V"][0]
    assert len(set(places.values())) == 4
    assert len(list(root.iter("{http://www.w3.org/2000/svg}line"))) == 3
