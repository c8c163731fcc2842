"""The examples in `examples/causal` show what they say they show."""

from __future__ import annotations

from functools import cache

import pytest

from examples.causal import addition, conjunction


def test_the_conjunction_fails_on_its_neurons_and_is_exact_at_20_degrees() -> None:
    assert conjunction.measured(conjunction.turned(20)).value == 1.0
    assert conjunction.measured(conjunction.turned(0)).value < 1.0
    assert conjunction.measured(conjunction.turned(45)).value < 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_search_finds_the_conjunction_and_nothing_where_there_is_nothing(seed: int) -> None:
    assert conjunction.searched(seed)[1].value >= 0.99
    for nothing in (
        conjunction.searched(seed, conjunction.XOR, ["A"])[1],
        conjunction.searched(seed, network=conjunction.Conjunction(seed))[1],
    ):
        assert nothing.value <= nothing.chance + 0.05


@cache
def adder(seed: int) -> addition.Adder:
    return addition.trained(seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_search_finds_the_first_sum(seed: int) -> None:
    assert addition.searched(adder(seed), addition.SUM, 4, seed, steps=200)[1].value >= 0.99


def test_the_first_sum_is_in_no_neurons_of_that_number() -> None:
    assert addition.best_units(adder(0), 4)[1].value < 0.5


def test_search_finds_no_first_sum_in_an_untrained_network_nor_another_variable() -> None:
    untrained = addition.searched(addition.trained(0, steps=0), addition.SUM, 4, 0, steps=200)[1]
    assert untrained.value <= untrained.chance + 0.05
    assert addition.searched(adder(0), addition.PREFIX, 4, 0, steps=200)[1].value < 0.4
