"""The examples in `examples/causal` show what they say they show."""

from __future__ import annotations

from functools import cache

import pytest

from examples.causal import addition, conjunction, equality


def test_the_conjunction_fails_on_its_neurons_and_is_exact_at_20_degrees() -> None:
    assert conjunction.measured(conjunction.turned(20)).value == 1.0
    assert conjunction.measured(conjunction.turned(0)).value < 1.0
    assert conjunction.measured(conjunction.turned(45)).value < 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_search_finds_the_conjunction_and_not_another_model_of_it(seed: int) -> None:
    search, found = conjunction.searched(seed)
    assert found.value >= 0.99
    assert abs(conjunction.angle(search) - 20) < 10  # every angle in a range is exact
    wrong = conjunction.searched(seed, conjunction.XOR, ["A"], restarts=0)[1]
    assert wrong.value <= wrong.chance


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_search_against_distributions_finds_20_degrees(seed: int) -> None:
    search = conjunction.searched_exactly(seed)
    assert conjunction.angle(search) == pytest.approx(20, abs=0.1)
    assert conjunction.measured(search.alignment).value == 1.0


def test_search_finds_no_conjunction_in_untrained_networks() -> None:
    """Of two random neurons some happen to compute something alike: the mean over several networks is at chance."""
    found = [
        conjunction.searched(seed, network=conjunction.Conjunction(seed), restarts=0)[1] for seed in range(100, 106)
    ]
    assert sum(each.value for each in found) <= sum(each.chance for each in found)


@cache
def adder(seed: int) -> addition.Adder:
    return addition.trained(seed)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_search_finds_the_first_sum(seed: int) -> None:
    assert addition.right(adder(seed)) == 1.0
    assert addition.searched(adder(seed), seed)[1].value >= 0.99


def test_the_first_sum_is_in_no_two_neurons() -> None:
    assert addition.best_units(adder(3), 3, 2)[1].value < 0.5


def test_search_finds_no_sum_in_an_untrained_network_nor_another_sum() -> None:
    untrained = addition.searched(addition.trained(3, steps=0), 3, restarts=0)[1]
    wrong = addition.searched(adder(3), 3, addition.WRONG, restarts=0)[1]
    for nothing in (untrained, wrong):
        assert nothing.value <= nothing.chance + 0.02


@cache
def reader(seed: int) -> equality.Reader:
    return equality.trained(seed)


def test_search_finds_both_equalities_in_a_transformer() -> None:
    network = reader(0)
    assert equality.right(network) == 1.0
    assert equality.searched(network, 0)[1].value >= 0.99


def test_search_finds_no_other_pairs_equality_nor_any_in_an_untrained_transformer() -> None:
    network = reader(0)
    for nothing in (
        equality.searched(network, 0, equality.WRONG, restarts=0)[1],
        equality.searched(equality.trained(0, steps=0), 0, restarts=0)[1],
    ):
        assert nothing.value <= nothing.chance + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_search_finds_both_equalities_from_other_seeds(seed: int) -> None:
    network = equality.trained(seed)
    assert equality.right(network) == 1.0
    assert equality.searched(network, seed)[1].value >= 0.99
