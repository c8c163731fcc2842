"""The arithmetic of `benchmarks.speed`, what it keeps, and a guard that fails when ours is worse; nothing is timed."""

from __future__ import annotations

import itertools
import json
import pathlib
import random
import statistics
from typing import Any

import pytest

from benchmarks.speed import cases as speed_cases
from benchmarks.speed import rounds, work
from benchmarks.speed.guard import compared, status
from benchmarks.speed.methods import METHODS
from benchmarks.speed.pairing import Pair, Summary, summarise, verdict
from benchmarks.speed.result import markdown, result, write
from benchmarks.speed.rounds import Kept, Plan, measure
from benchmarks.speed.work import floor_work, method_work
from benchmarks.speed.worker import Bench

CASES = ("tiny train", "tiny forward")


def plan(methods: tuple[str, ...] = ("ours",), number: int = 3, **more: Any) -> Plan:
    return Plan(CASES, methods, number, more.pop("sittings", 1), "cpu", **more)


def measured(file: pathlib.Path, ratios: dict[str, list[float]], wanted: Plan | None = None) -> dict[str, Any]:
    """A result in which ours takes so many times its floor, whose speed changes from round to round."""
    kept = Kept(file)
    kept.measured_on({"own": {"device": "a processor"}})
    for case, taken in ratios.items():
        for number, ratio in enumerate(taken):
            floor = 1.0 + number
            kept.add({"case": case, "method": "ours", "round": number, "pair": [floor, floor * ratio, floor]})
    return result(wanted or plan(number=max(map(len, ratios.values()))), kept)


def test_an_even_drift_leaves_a_ratio_alone() -> None:
    """The machine slows down evenly: each of the three runs costs 0.3 more of everything than the last."""
    speeds = (1.0, 1.3, 1.6)
    before, taken, after = (speed * work for speed, work in zip(speeds, (2.0, 2.2, 2.0), strict=True))
    assert Pair(before, taken, after).ratio == pytest.approx(1.1)


def test_the_noise_holds_the_medians_of_runs_again() -> None:
    """Of runs drawn at random, those whose median is farther from the truth than their noise are few, not none."""
    draw = random.Random(0)
    outside = 0
    for _ in range(2000):
        summary = summarise([Pair(1.0, draw.gauss(1.1, 0.05), 1.0) for _ in range(9)])
        assert summary.noise is not None
        outside += abs(summary.median - 1.1) > summary.noise
    assert 0 < outside < 60


def test_a_summary_tells_the_spread() -> None:
    summary = summarise([Pair(1.0, 1.2, 1.0), Pair(2.0, 2.2, 2.0), Pair(1.0, 1.5, 1.5)])
    assert (summary.low, summary.median, summary.high) == pytest.approx((1.1, 1.2, 1.2))
    assert summary.floor_noise == 0.0
    assert summary.floor_seconds == statistics.median([1.0, 1.0, 2.0, 2.0, 1.0, 1.5])
    assert summarise([Pair(1.0, 1.2, 1.0)] * 2).noise is None
    with pytest.raises(ValueError, match="no rounds"):
        summarise([])


def summary(median: float, noise: float | None) -> Summary:
    return Summary(9, median, median, median, noise, 0.0, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1.00, 0.03), (1.06, 0.04), "worse"),  # 0.06 apart, √(0.03² + 0.04²) = 0.05
        ((1.06, 0.03), (1.00, 0.04), "better"),
        ((1.00, 0.03), (1.04, 0.04), "same"),
        ((1.00, 0.06), (1.04, 0.08), "unclear"),
        ((1.00, 0.06), (1.11, 0.08), "worse"),
    ],
)
def test_verdicts(old: tuple[float, float], new: tuple[float, float], expected: str) -> None:
    assert verdict(summary(*old), summary(*new)) == expected


def test_two_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 rounds"):
        verdict(summary(1.0, 0.01), summary(1.0, None))


@pytest.mark.parametrize(
    ("verdicts", "expected"), [(["same", "better"], 0), (["worse", "unclear"], 1), (["same", "unclear"], 2)]
)
def test_the_guard_fails_when_worse_and_when_it_cannot_tell(verdicts: list[Any], expected: int) -> None:
    assert status(verdicts) == expected


def test_a_slower_case_is_worse(tmp_path: pathlib.Path) -> None:
    quiet, slower = [1.100, 1.102, 1.098], [1.150, 1.152, 1.148]
    old = measured(tmp_path / "old", {"tiny train": quiet, "tiny forward": quiet})
    new = measured(tmp_path / "new", {"tiny train": quiet, "tiny forward": slower})
    rows = compared(json.loads(json.dumps(old)), new)
    assert [row[2] for row in rows.values()] == ["same", "worse"]
    assert rows["tiny forward"][:2] == pytest.approx((1.1, 1.15))


def test_what_cannot_be_compared_is_refused(tmp_path: pathlib.Path) -> None:
    both = measured(tmp_path / "both", dict.fromkeys(CASES, [1.1] * 3))
    one = measured(tmp_path / "one", {"tiny train": [1.1] * 3})
    with pytest.raises(SystemExit, match=r"tiny forward.*not measured"):
        compared(both, one)
    with pytest.raises(SystemExit, match="not in the committed result"):
        compared(one, both)
    other = json.loads(json.dumps(both))
    other["cases"]["tiny train"]["settings"]["tokens"] += 1
    with pytest.raises(SystemExit, match="other sizes"):
        compared(other, both)
    with pytest.raises(SystemExit, match="nothing was compared"):
        compared(both, {**both, "cases": {}})


class FakeWorker:
    """Takes the place of a process; every answer is the number of questions so far."""

    asked: list[tuple[str, str]]

    def __init__(self, *where: Any) -> None:
        self.count = itertools.count(1)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *raised: object) -> None:
        return

    def ask(self, do: str, **message: Any) -> dict[str, Any]:
        if do == "about":
            return {"device": "a processor"}
        if do == "make":
            fails = message["case"] == "tiny forward" and "lora" in message["methods"]
            return {"failed": {"lora": "RuntimeError: cannot"} if fails else {}}
        FakeWorker.asked.append((message["method"], message["which"]))
        return {"seconds": float(next(self.count))}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr(rounds, "Worker", FakeWorker)
    monkeypatch.setattr(rounds, "commit", lambda: "abc")
    FakeWorker.asked = []
    return FakeWorker.asked


def test_a_method_stands_between_its_floors_and_turns_change(
    asked: list[tuple[str, str]], tmp_path: pathlib.Path
) -> None:
    kept = Kept(tmp_path / "kept")
    measure(plan(("ours", "lora"), 2), kept)
    assert [which for _, which in asked] == ["floor", "method", "floor"] * 6
    assert [method for method, _ in asked[::3]] == ["lora", "ours", "ours", "lora", "ours", "ours"]
    assert kept.pairs["tiny train", "lora"][0] == Pair(1.0, 2.0, 3.0)
    assert kept.failed == {("tiny forward", "lora"): "RuntimeError: cannot"}


def test_a_run_that_was_stopped_goes_on(asked: list[tuple[str, str]], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "kept"
    measure(plan(), Kept(file))
    whole = file.read_text()
    file.write_text(whole[:-5])
    asked.clear()
    kept = Kept.read(file)
    measure(plan(), kept)
    assert len(asked) == 3
    assert Kept.read(file).pairs.keys() == {("tiny train", "ours"), ("tiny forward", "ours")}
    assert all(len(Kept.read(file).pairs[case, "ours"]) == 3 for case in CASES)


def test_a_run_does_not_go_on_elsewhere(asked: list[tuple[str, str]], tmp_path: pathlib.Path) -> None:
    kept = Kept(tmp_path / "kept")
    kept.measured_on({"commit": "of another day"})
    with pytest.raises(SystemExit, match=r"of another day.*--fresh"):
        measure(plan(), kept)
    assert not asked


def test_rounds_go_evenly_over_sittings() -> None:
    nine = plan(number=9, sittings=3)
    assert [nine.sitting_of(number) for number in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_is_missing_is_told_with_its_reason(tmp_path: pathlib.Path) -> None:
    wanted = plan(("ours", "lora", "pyreft"), environments=tmp_path)
    kept = Kept(tmp_path / "kept")
    kept.add({"case": "tiny train", "method": "lora", "failed": "RuntimeError: no such thing"})
    kept.add({"case": "tiny train", "method": "ours", "round": 0, "pair": [1.0, 1.25, 1.0]})
    write(result(wanted, kept), tmp_path / "told", "python -m benchmarks.speed")
    told = json.loads((tmp_path / "told.json").read_text())
    text = (tmp_path / "told.md").read_text()
    assert text == markdown(told, "python -m benchmarks.speed")
    assert "| tiny train |  | 1.250 (1.250–1.250; rounds: 1) | fails | 1000.0 | 0.0% |" in text
    assert "LoRA fails at tiny train: RuntimeError: no such thing." in text
    assert "pyreft was left out: no environment: make it by `python -m benchmarks.speed.environments pyreft`." in text
    assert "| tiny forward |  | not measured | not measured |  |  |" in text


@pytest.mark.parametrize("method", ["ours", "lora"])
@pytest.mark.parametrize("case", ["tiny train", "tiny forward", "tiny generation", "tiny 3 adapters"])
def test_a_worker_answers(case: str, method: str) -> None:
    bench = Bench("cpu")
    assert bench.answer({"do": "make", "case": case, "methods": [method]}) == {"failed": {}}
    assert bench.answer({"do": "time", "method": method, "which": "floor"}).keys() == {"seconds"}
    assert bench.answer({"do": "time", "method": method, "which": "method"}).keys() == {"seconds"}


def test_an_adapter_that_does_nothing_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = METHODS["ours"]
    monkeypatch.setattr(ours, "attach", lambda base, case: base)
    failed = Bench("cpu").answer({"do": "make", "case": "tiny forward", "methods": ["ours"]})["failed"]
    assert "changes nothing" in failed["ours"]


def test_floor_and_method_generate_as_many_tokens() -> None:
    case = speed_cases.CASES["tiny generation"]
    floor: Any = floor_work(case, "cpu")()
    ours: Any = method_work("ours", case, "cpu")()
    assert floor.shape == ours.shape == (case.batch, case.tokens + case.new_tokens)


def test_a_floor_of_training_reaches_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward hands a gradient to the first block's input, and to no weight."""
    case, seen, bases = speed_cases.CASES["tiny train"], [], []

    def watched(*given: Any) -> Any:
        bases.append(speed_cases.llama(*given))
        bases[0].model.layers[0].register_full_backward_hook(lambda module, into, out: seen.append(into[0]))
        return bases[0]

    monkeypatch.setattr(work, "llama", watched)
    floor_work(case, "cpu")()
    assert seen[0].shape == (case.batch, case.tokens, case.shape.hidden)
    assert seen[0].abs().sum() > 0
    assert all(parameter.grad is None for parameter in bases[0].parameters())
