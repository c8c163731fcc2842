"""What a step costs: every method can be measured, in a process of its own, and the page says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.cost import page
from benchmarks.skills.skill import Example
from benchmarks.speed.about import ROOT
from benchmarks.study.methods import METHODS
from benchmarks.study.rows import encode
from benchmarks.study.step_cost import TIMED, WARM, _clocked, step_cost
from studies.tiny import tiny_base

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
BASE = tiny_base()
ROWS = encode(BASE, [Example(f"Date: {n} March 1990", f"1990-03-0{n}") for n in range(1, 5)])
COMMAND = """
import sys
from benchmarks.quality import cost
from studies.test_cost import BASE, ROWS
cost.load_base = lambda name: BASE
cost.rows_of = lambda *given: (ROWS, [], [])
cost.main()
"""
"""The command on the tiny base: in a process of its own, since one that has computed gradients must not fork."""


@pytest.mark.parametrize("method", [name for name in METHODS if name != "road"])  # it needs a base of other widths
def test_every_method_can_be_measured_and_kept(method: str) -> None:
    told = step_cost(BASE, method, ROWS)
    assert min(told["forward"], told["step"]) > 0
    assert told["parameters"] >= 1
    assert told["saved"] > 2 * told["parameters"]
    assert told["peak"] >= 0


def test_memory_is_what_steps_add_to_a_loaded_model() -> None:
    """Of all weights a gradient and two moments; the model itself was there before."""
    base = tiny_base()
    make = base.make

    def wide(dtype: Any) -> Any:
        model = make(dtype)
        model.lm_head = type(model.lm_head)(32, 50_000, bias=False).to(dtype)
        return model

    told = step_cost(type(base)(**{**vars(base), "make": wide}), "full", ROWS)
    weights = 4 * told["parameters"] / 2**20
    assert 3 * weights < told["peak"]
    assert 4 * told["parameters"] < told["saved"] < 4 * told["parameters"] + 10_000


def test_the_clock_is_read_at_the_start_of_each_step_and_after_the_last() -> None:
    ticks: list[float] = []
    seen = [len(ticks) for _ in _clocked(ROWS, 3, ticks)]
    assert seen == [1, 2, 3]
    assert len(ticks) == 4
    assert ticks == sorted(ticks)


def run(*more: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *more],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_measures_in_rounds_and_writes_what_it_measured(tmp_path: Path) -> None:
    done = run("--methods", "loreft r4,full", "--rounds", "2", "--output", str(tmp_path / "cost"))
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "cost.json").read_text())
    assert [list(one) for one in told["rounds"]] == [["loreft r4", "full"]] * 2
    assert {"device", "torch", "commit"} <= told["machine"].keys()
    assert (tmp_path / "cost.md").read_text() == page(told)
    assert done.stdout.endswith(page(told) + "\n")


def test_a_method_that_cannot_be_measured_ends_the_command(tmp_path: Path) -> None:
    done = run("--methods", "road", "--rounds", "1", "--output", str(tmp_path / "cost"))
    assert done.returncode == 1
    assert "step_cost ended in its process without a result" in done.stderr
    assert not list(tmp_path.iterdir())


def costs(forward: float, step: float) -> dict[str, float]:
    return {"forward": forward, "step": step, "peak": 3.4, "parameters": 1234.0, "saved": 2048.0}


def test_rows_are_medians_of_ratios_of_one_process_and_stand_by_rising_cost() -> None:
    """A machine that is twice as slow in one round changes no ratio of it."""
    rounds = [
        {"full": costs(1.0, 4.0), "loreft r4": costs(1.0, 2.5)},
        {"full": costs(2.0, 8.0), "loreft r4": costs(2.0, 4.0)},
        {"full": costs(1.0, 5.0), "loreft r4": costs(1.0, 3.0)},
    ]
    text = page({"base": "upper", "identity": "a", "tokens": 9, "machine": {"torch": "2"}, "rounds": rounds})
    rows = [line for line in text.splitlines() if line.startswith(("| full", "| loreft"))]
    assert rows == [
        "| loreft r4 | 1,234 | 2.50 [2.00, 3.00] | 3.000 | 3 | 2 |",
        "| full | 1,234 | 4.00 [4.00, 5.00] | 5.000 | 3 | 2 |",
    ]
    assert f"the median of {TIMED} steps after {WARM}" in text
    assert "padded to 9 tokens" in text
    assert "- torch: 2" in text
