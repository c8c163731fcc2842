"""The search of learning rates: by validation, complete ones alone, and wider where the best lies at an edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import search as search_module
from benchmarks.quality.plan import Grid
from benchmarks.quality.search import WIDER, best_rates, rates_of, search, search_plan
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import Settings, read

GRID = Grid("wide", "tiny", ["loreft r4", "lora r1 qv"], ["date", "camel"], ["date", "camel"], [0], 3, 4, (16, 6, 6))
REFT = sorted(METHODS["loreft r4"].rates)


def runs_of(plan: list[Settings], best: float) -> list[dict[str, Any]]:
    """Runs whose accuracy falls with the distance from a rate."""
    return [{"settings": one, "result": result_of(one, best)} for one in plan]


def result_of(settings: Settings, best: float) -> dict[str, float]:
    ratio = max(settings["rate"] / best, best / settings["rate"])
    return {"validation accuracy": 1 / ratio, "validation loss": ratio}


def test_rates_are_chosen_by_validation_and_only_where_the_search_is_complete() -> None:
    made = runs_of(search_plan(GRID, []), best=REFT[1])
    assert best_rates(GRID, made)["loreft r4"] == REFT[1]
    tied = [{**run, "result": {**run["result"], "validation accuracy": 0.5}} for run in made]
    assert best_rates(GRID, tied)["loreft r4"] == REFT[1]  # by the loss
    without = [run for run in made if run["settings"]["method"] == "loreft r4"][:-1]
    assert best_rates(GRID, without) == {}
    assert best_rates(Grid(**{**vars(GRID), "steps": 4}), made) == {}


@pytest.mark.parametrize("end", [0, -1])
def test_a_grid_is_widened_beyond_the_edge_where_the_best_lies_until_it_lies_inside(end: int) -> None:
    known = runs_of(search_plan(GRID, []), best=REFT[end])
    wider = rates_of(GRID, "loreft r4", known)
    assert len(wider) == len(REFT) + 1
    assert wider[end] == pytest.approx(REFT[end] ** 2 / REFT[(1, -2)[end]], rel=0.05)
    assert "loreft r4" not in best_rates(GRID, known)  # not before the new one is tried
    known = runs_of(search_plan(GRID, known), best=REFT[end])
    assert rates_of(GRID, "loreft r4", known) == wider
    assert best_rates(GRID, known)["loreft r4"] == REFT[end]
    known = []
    for _ in range(WIDER + 2):
        known = runs_of(search_plan(GRID, known), best=(1e-9, 1e9)[end])
    assert len(rates_of(GRID, "loreft r4", known)) == len(REFT) + WIDER


def test_the_search_goes_on_until_nothing_is_wanted_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[float] = []

    def run(settings: Settings) -> dict[str, float]:
        done.append(settings["rate"])
        return result_of(settings, best=REFT[-1] * 3)

    monkeypatch.setattr(search_module, "run", run)
    chosen = search(GRID, tmp_path / "runs.jsonl")
    assert chosen["loreft r4"] > REFT[-1]
    assert len(done) == len(read(tmp_path / "runs.jsonl"))
    count = len(done)
    assert search(GRID, tmp_path / "runs.jsonl") == chosen
    assert len(done) == count
