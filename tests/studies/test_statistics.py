"""Intervals, paired tests, Holm, power and ranks, against numbers that are known or counted otherwise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from benchmarks.study.statistics import bootstrap, coverage, holm, paired_p, seen_effect, spearman


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    generator, inside = np.random.default_rng(0), 0
    for _ in range(200):
        _, low, high = bootstrap(generator.normal(1.0, 2.0, 30).tolist())
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


@pytest.mark.parametrize("count", [6, 10, 20])
def test_how_often_an_interval_holds_the_mean_is_what_counting_gives(count: int) -> None:
    generator = np.random.default_rng(count)
    values = generator.normal(size=(6000, count))
    draws = generator.integers(0, count, (400, count))
    low, high = np.quantile(values[:, draws].mean(-1), [0.025, 0.975], axis=1)
    assert coverage(count) == pytest.approx(float(((low <= 0) & (high >= 0)).mean()), abs=0.02)


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    mean, low, high = bootstrap([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_p_is_the_share_of_flips_that_are_as_far_from_zero() -> None:
    values = [0.3, -0.1, 0.4, 0.2, 0.25]
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=5)]
    expected = sum(flip >= abs(sum(values)) - 1e-12 for flip in flips) / len(flips)
    assert paired_p(values) == pytest.approx(expected)
    assert paired_p([1.0] * 5) == pytest.approx(2 / 2**5)
    assert paired_p([0.0, 0.0]) == 1
    assert paired_p([1.0] * 20) < 0.001
    assert paired_p(np.random.default_rng(0).normal(size=40).tolist()) > 0.01


def test_holm_is_the_textbook_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1


@pytest.mark.parametrize(("pairs", "effect"), [(5, 1.68), (8, 1.16), (20, 0.66)])
def test_what_a_paired_t_test_sees_is_what_tables_of_power_say(pairs: int, effect: float) -> None:
    assert seen_effect(pairs) == pytest.approx(effect, abs=0.015)


def test_of_one_pair_nothing_is_seen() -> None:
    assert seen_effect(1) == math.inf


def test_rank_correlation_knows_ties_and_sides_that_do_not_vary() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 1, 5, 9]) == pytest.approx(1)
    assert math.isnan(spearman([1, 1], [1, 2]))
