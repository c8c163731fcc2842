"""An accuracy beside untrained networks, permuted labels, single neurons and whole vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import peft_reft.causal.calibrating
from benchmarks.calibration import HELD_OUT, HIDDEN, MODEL, PAIRS, SETTINGS, decode, encode, loss, planted, untrained
from peft_reft.causal import (
    AlignmentSearch,
    Calibration,
    CalibrationWarning,
    Nulls,
    Pca,
    Site,
    collect,
    over_sites,
    untrained_like,
)
from peft_reft.causal.calibration import exceedance_bound, permuted_value
from peft_reft.hub_format.errors import CausalModelError

SITE = Site(module="hidden")


def search(network: Any, **fields: Any) -> AlignmentSearch:
    given = {"encode": encode, "loss": loss, "seed": 0, **fields}
    return AlignmentSearch(network, MODEL, SITE, given.pop("variables", {"a": 2}), **given)


def calibrated(network: Any, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Calibration:
    """With three nulls in place of a hundred."""
    monkeypatch.setattr(peft_reft.causal.calibrating, "FEWEST", 3)
    given = {"nulls": 3, "seed": 5, **SETTINGS, **given}
    return search(network).calibrate(PAIRS, HELD_OUT, decode=decode, **given)


@pytest.mark.parametrize(("reached", "count"), [(0, 100), (1, 100), (2, 100), (7, 40)])
def test_the_bound_is_where_so_few_would_come_one_time_in_twenty(reached: int, count: int) -> None:
    bound = exceedance_bound(reached, count)
    chance = sum(math.comb(count, n) * bound**n * (1 - bound) ** (count - n) for n in range(reached + 1))
    assert_close(chance, 0.05, rtol=1e-6, atol=1e-9)
    assert exceedance_bound(count, count) == 1.0


def test_of_a_hundred_nulls_one_may_reach_it() -> None:
    assert exceedance_bound(1, 100) <= 0.05 < exceedance_bound(2, 100)


def test_labels_are_permuted_among_pairs() -> None:
    right = [(n % 2, n % 2) for n in range(40)]
    assert permuted_value(right, seed=0) == 1 / 1001
    assert permuted_value([(0, n % 2) for n in range(40)], seed=0) == 1.0
    two = permuted_value([(0, 0), (1, 1)], seed=0)  # one of two orders is the right one
    assert abs(two - 0.5) < 0.06


def test_what_was_planted_is_found_beside_its_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    network = planted(3)
    before = [p.clone() for p in network.parameters()]
    found = calibrated(network, monkeypatch)
    assert found.accuracy.value > 0.98
    assert found.nulls.accuracies != (found.accuracy.value,) * 3
    assert max(found.nulls.accuracies) < 0.75
    assert found.whole is not None
    assert found.whole.value < 0.9  # b goes with the whole vector
    assert not found.found  # three nulls cannot say so
    assert all(map(torch.equal, before, network.parameters()))
    more = Nulls((0.6,) * 99 + (1.0,), found.nulls.settings)
    again = calibrated(network, monkeypatch, nulls=more)
    assert again.found
    assert again.accuracy == found.accuracy
    assert (again.p_value, again.permuted) == (2 / 101, 1 / 1001)
    assert "found         yes" in str(again)
    assert not calibrated(untrained(3), monkeypatch, nulls=more).found


def test_nulls_of_another_search_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Nulls((0.5,) * 100, {"steps": 1})
    with pytest.raises(CausalModelError, match="another search"):
        calibrated(untrained(1), monkeypatch, nulls=other)
    with pytest.raises(CausalModelError, match="nulls=2"):
        calibrated(untrained(1), monkeypatch, nulls=2)


def test_a_rotation_that_does_worse_than_neurons_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    network = planted(3)
    with torch.no_grad():  # a and b in single neurons
        rows = torch.linalg.qr(network.last.weight.T).Q
        back = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(3))).Q
        network.hidden.weight.copy_(back.T @ network.hidden.weight)
        network.hidden.bias.copy_(back.T @ network.hidden.bias)
        network.last.weight.copy_(network.last.weight @ back)
    assert rows.shape == (HIDDEN, 1)
    fit = AlignmentSearch.fit
    monkeypatch.setattr(
        AlignmentSearch, "fit", lambda self, *given, **more: self.directions and fit(self, *given, **more)
    )
    with pytest.warns(CalibrationWarning, match="single neurons"):
        found = calibrated(network, monkeypatch)
    assert found.worse_than_neurons
    assert found.neurons.value > 0.95


def test_a_mask_finds_the_components_that_hold_a_variable() -> None:
    network = planted(4)
    hidden = collect(network, encode(list(MODEL.every_input())), SITE)
    components = Pca.fit(hidden, 8, standardise=False).rotation.matrix
    found = search(network, variables={"a": 1, "b": 1}, directions=components)
    rows = found.units()
    assert set(rows["a"]) & set(rows["b"]) == set()
    assert found.rotation.shape == (8, HIDDEN)
    with pytest.raises(CausalModelError, match="without dimensions"):
        search(network, variables=["a"], directions="neurons")
    with pytest.raises(CausalModelError, match="8 directions"):
        search(network, variables={"a": 9}, directions=components)


def test_sites_are_corrected_for_their_number() -> None:
    accuracy = search(planted(3)).accuracy(HELD_OUT, decode=decode)

    def at(reached: int, permuted: float = 0.001) -> Calibration:
        nulls = Nulls((1.0,) * reached + (0.0,) * (200 - reached), {})
        return Calibration(accuracy, accuracy, None, nulls, permuted, 0.05)

    found = over_sites({"x": at(0), "y": at(3), "z": at(0, permuted=0.9)})
    assert_close(found["x"], 3 * at(0).bound)
    assert_close(found["y"], max(3 * at(0).bound, 2 * at(3).bound))
    assert found["z"] == 0.9
    with pytest.raises(CausalModelError, match="no site"):
        over_sites({})


def test_an_untrained_copy_starts_anew_and_leaves_the_network_alone() -> None:
    network, state = planted(1), torch.get_rng_state()
    before = [p.clone() for p in network.parameters()]
    first, same, other = (untrained_like(network, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first.parameters(), same.parameters()))
    assert not any(map(torch.equal, first.parameters(), other.parameters()))
    assert all(map(torch.equal, before, network.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(CausalModelError, match="reset_parameters"):
        untrained_like(torch.nn.ParameterList([torch.zeros(2)]), 0)
