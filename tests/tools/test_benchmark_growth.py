"""The growth and the compiled table of `benchmarks.speed`: slopes, what is told of them, what is counted."""

from __future__ import annotations

import json
import pathlib
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed import compiled, growth, work
from benchmarks.speed.axes import AXES, POINTS
from benchmarks.speed.cases import CASES, COMPILED, Case, Shape, llama
from benchmarks.speed.graphs import counted
from benchmarks.speed.growth_figure import draw
from benchmarks.speed.growth_result import MANY, growth_markdown, growth_result, own, write_growth
from benchmarks.speed.methods import METHODS
from benchmarks.speed.pairing import Pair
from benchmarks.speed.rounds import Kept, Plan
from benchmarks.speed.slopes import slope
from benchmarks.speed.work import floor_work, method_work

TINY = Shape(32, 2, 64)


def test_a_slope_is_that_of_a_fit_in_logarithms_where_errors_are_small() -> None:
    draw_from = random.Random(0)
    sizes = [2.0**power for power in range(7)]
    costs = [3 * size**0.7 * draw_from.uniform(0.98, 1.02) for size in sizes]
    errors = [0.001 * cost for cost in costs]
    fit, covariance = np.polyfit(np.log(sizes), np.log(costs), 1, w=np.divide(costs, errors), cov=True)
    found = slope(sizes, costs, errors)
    assert found is not None
    assert found.exponent == pytest.approx(fit[0], abs=0.005)
    assert (found.high - found.low) / 2 == pytest.approx(2.571 * covariance[0, 0] ** 0.5, abs=0.005)


def test_the_interval_of_a_slope_holds_the_truth_also_where_noise_is_as_large_as_a_cost() -> None:
    draw_from, held, below, found_any = random.Random(1), 0, 0, 0
    sizes, errors = [1, 2, 4, 8, 16], [0.1, 0.1, 0.2, 0.6, 1.2]
    for _ in range(200):
        costs = [draw_from.gauss(1.0, error) for error in errors]
        found = slope(sizes, costs, errors)
        below += min(costs) < 0
        if found is not None:
            found_any += 1
            held += found.low <= 0.0 <= found.high
    assert below > 20
    assert found_any > 150
    assert held / found_any > 0.93


def test_costs_that_say_nothing_have_no_slope() -> None:
    assert slope([1, 2, 4], [-1.0, -1.0, -2.0], [1.0, 1.0, 1.0]) is None
    assert slope([1, 2, 4], [0.1, -0.1, 0.1], [1.0, 1.0, 1.0]) is None


def test_two_points_have_no_slope_and_too_many_are_refused() -> None:
    assert slope([1, 2], [1.0, 2.0], [0.1, 0.1]) is None
    with pytest.raises(ValueError, match="at most 12"):
        slope(list(range(1, 14)), [1.0] * 13, [0.1] * 13)


def test_the_own_cost_is_what_a_call_takes_beyond_its_floors() -> None:
    found = own([Pair(0.010, 0.013, 0.012), Pair(0.010, 0.012, 0.010), Pair(0.010, 0.014, 0.010)])
    assert (found["low"], found["median"], found["high"]) == pytest.approx((2.0, 2.0, 4.0))
    # 3 · √(π/2) · s / √3, with s² of 2, 2, 4 = 4/3
    assert found["noise"] == pytest.approx(3 * (np.pi / 2) ** 0.5 * (4 / 3) ** 0.5 / 3**0.5)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_changes_one_size_and_edits_what_fits(axis: str) -> None:
    cases = [POINTS[AXES[axis].point(value)] for value in AXES[axis].values]
    told = [{**case.settings(), **case.settings()["shape"], "shape": None} for case in cases]
    changed = {key for one in told for key in one.keys() | told[0].keys() if one.get(key) != told[0].get(key)}
    assert len(changed) == (2 if axis == "adapters per batch" else 1)
    for case in cases:
        prompt = case.tokens // 2 if case.work == "train" else case.tokens
        assert 2 * case.edge <= prompt
        assert case.batch % case.named == 0
        assert case.named <= case.loaded
    assert [case.settings()["work"] for case in cases] == [AXES[axis].work] * len(cases)


def test_fields_that_came_later_leave_the_settings_of_older_results_alone() -> None:
    assert CASES["S train"].settings().keys() == {
        *("shape", "work", "batch", "tokens", "new_tokens", "rank", "lora_rank", "loaded")
    }
    assert replace(CASES["S train"], edge=3).settings()["edge"] == 3


def kept_of(file: pathlib.Path, axis: str, costs: dict[int, float]) -> Kept:
    """Three rounds at every point, of a floor of one second and an own cost of so many."""
    kept = Kept(file)
    kept.measured_on({"commit": "abc", "own": {"device": "a processor"}})
    for value, cost in costs.items():
        for number, wobble in enumerate((0.99, 1.0, 1.01)):
            pair = [1.0, 1.0 + cost * wobble, 1.0]
            kept.add({"case": AXES[axis].point(value), "method": "ours", "round": number, "pair": pair})
    return kept


def growing(file: pathlib.Path, axis: str, exponent: float, *, without: tuple[int, ...] = ()) -> dict[str, Any]:
    values = [value for value in AXES[axis].values if value not in without]
    kept = kept_of(file, axis, {value: 0.01 * value**exponent for value in values})
    plan = Plan(tuple(AXES[axis].point(value) for value in values), ("ours",), 3, 1, "cpu")
    told: dict[str, Any] = json.loads(json.dumps(growth_result(plan, kept, (axis,))))
    return told


def test_what_grows_faster_than_it_must_is_told(tmp_path: pathlib.Path) -> None:
    fast, slow = growing(tmp_path / "fast", "rank", 1.5), growing(tmp_path / "slow", "rank", 0.4)
    assert fast["axes"]["rank"]["ours"]["slopes"]["all"]["exponent"] == pytest.approx(1.5)
    assert "| faster |" in growth_markdown(fast, "command", "growth")
    assert "- rank (grows faster than it must): not explained yet." in growth_markdown(fast, "command", "growth")
    assert "faster than it must" not in growth_markdown(slow, "command", "growth")


def test_a_point_left_out_and_one_of_no_cost_are_told_and_in_no_slope(tmp_path: pathlib.Path) -> None:
    told = growing(tmp_path / "kept", "batch", 1.0, without=(32,))
    points = told["axes"]["batch"]["ours"]["points"]
    assert points["32"] == {"missing": "left out of this run"}
    assert told["axes"]["batch"]["ours"]["slopes"]["all"]["points"] == 5
    kept = kept_of(tmp_path / "noise", "batch", {1: 0.0, 2: 0.01, 4: 0.02})
    plan = Plan(tuple(AXES["batch"].point(value) for value in (1, 2, 4)), ("ours",), 3, 1, "cpu")
    noisy = growth_result(plan, kept, ("batch",))
    assert noisy["axes"]["batch"]["ours"]["slopes"]["all"] is None
    text = growth_markdown(noisy, "command", "growth")
    assert "| 1 | 1.000 (1.000–1.000) | 0.00 ± 0.00 (noise) | 1000.0 | 0.0% |" in text
    assert "| batch | 1 |  |  |  |" in text


def test_a_growth_is_written_with_its_figure(tmp_path: pathlib.Path) -> None:
    told = growing(tmp_path / "kept", "rank", 0.5)
    write_growth(told, tmp_path / "told", "command")
    assert "](told.svg)" in (tmp_path / "told.md").read_text()
    for name in ("once", "again"):
        draw(json.loads((tmp_path / "told.json").read_text()), tmp_path / f"{name}.svg")
    assert (tmp_path / "once.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


def test_many_adapters_are_timed_between_one_and_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    seconds = {"one": 2.0, "many": 3.0}
    monkeypatch.setattr(growth, "pair", lambda device: (lambda: "one", lambda: "many"))
    monkeypatch.setattr(growth, "seconds_of", lambda act, calls, device: seconds[act()])
    kept = Kept(tmp_path / "kept")
    growth.measure_many(kept, 2, "cuda")
    assert kept.pairs[MANY] == {0: Pair(2.0, 3.0, 2.0), 1: Pair(2.0, 3.0, 2.0)}
    monkeypatch.setattr(growth, "pair", lambda device: pytest.fail("all rounds are there"))
    growth.measure_many(kept, 2, "cuda")


def test_rows_name_their_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = Case("", TINY, "forward", 4, 32, calls=1, loaded=2, named=2, own_cost=True), []
    usual = METHODS["ours"].forward

    def watched(model: Any, inputs: dict[str, Any], labels: Any = None) -> Any:
        seen.append(inputs)
        return usual(model, inputs, labels)

    monkeypatch.setattr(METHODS["ours"], "forward", watched)
    method_work("ours", case, "cpu")()
    assert "adapter_names" not in seen[0]
    assert seen[-1]["adapter_names"] == ["first", "first", "a1", "a1"]


def test_a_floor_for_the_own_cost_ends_behind_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    bases, reached = [], []

    def watched(*given: Any) -> Any:
        bases.append(llama(*given))
        for number, block in enumerate(bases[0].model.layers):
            block.mlp.register_full_backward_hook(lambda module, into, out, number=number: reached.append(number))
        return bases[0]

    monkeypatch.setattr(work, "llama", watched)
    floor_work(Case("", TINY, "train", 2, 32, calls=1, own_cost=True), "cpu")()
    assert reached == [1]


@pytest.mark.parametrize("name", ["tiny train", "tiny generation"])
def test_ours_takes_no_graph_and_no_break_beyond_the_base(name: str) -> None:
    base, ours = (counted(method, CASES[name], "cpu") for method in ("floor", "ours"))
    assert ours.pop("further graphs, adapter") == 0
    assert ours == base
    assert base["graphs"] > 0


def test_a_break_and_a_graph_more_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        made = llama(*given)
        made.model.layers[1].register_forward_hook(lambda *told: torch._dynamo.graph_break())
        return made

    monkeypatch.setattr("benchmarks.speed.graphs.llama", broken)
    monkeypatch.setattr("benchmarks.speed.graphs.LONGER", ())
    found = counted("floor", CASES["tiny forward"], "cpu")
    assert found["breaks"] > 0
    assert found["graphs"] > 1


def test_a_compiled_case_runs_compiled() -> None:
    """Floor and method hand graphs to the backend that the case names, and give what the eager case gives."""
    graphs: list[Any] = []

    def backend(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def seeded(make: Any, case: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(case, "cpu")()

    torch._dynamo.reset()
    for make in (floor_work, lambda *given: method_work("ours", *given)):
        graphs.clear()
        found = seeded(make, replace(CASES["tiny forward"], compiled=backend))  # type: ignore[arg-type]
        expected = seeded(make, CASES["tiny forward"])
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        assert len(graphs) == 1
    torch._dynamo.reset()


def test_graphs_are_told_beside_the_bases(tmp_path: pathlib.Path) -> None:
    name = "S train, compiled"
    kept, plan = Kept(tmp_path / "kept"), Plan((name,), ("ours", "lora"), 3, 1, "cpu")
    told = {"graphs": 1, "further graphs, length": 1, "breaks": 0}
    kept.add({"case": name, "method": f"floor at {name}", "facts": told})
    kept.add({"case": name, "method": f"ours at {name}", "facts": {**told, "breaks": 2, "further graphs, adapter": 0}})
    kept.add({"case": "graphs", "method": f"lora at {name}", "failed": "RuntimeError: cannot"})
    kept.add({"case": name, "method": "ours", "round": 0, "pair": [1.0, 1.25, 1.0]})
    text = compiled.compiled_markdown(compiled.compiled_result(plan, kept), "command")
    assert f"| {name} | frozen base | 1 | 1 |  | 0 |" in text
    assert f"| {name} | ours | 1 (+0) | 1 (+0) | 0 (+0) | 2 (+2) |" in text
    assert f"| {name} | LoRA | not counted |  |  |  |" in text
    assert f"Not counted, graphs, lora at {name}: RuntimeError: cannot." in text
    assert f"| {name} |  | 1.250 (1.250–1.250; rounds: 1) | not measured | 1000.0 | 0.0% |" in text


def test_graphs_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(compiled, "counted", lambda method, case, device: asked.append(method) or {"graphs": 1})
    plan = Plan(tuple(COMPILED)[:1], ("ours",), 3, 1, "cpu")
    for _ in range(2):
        compiled.count(plan, Kept.read(tmp_path / "kept"))
    assert asked == ["floor", "ours"]
