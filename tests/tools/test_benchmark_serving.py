"""The arithmetic of `benchmarks.serving`: what is asked, on which clock, what is fitted, a table of made-up runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving.drive import Clock, drive
from benchmarks.serving.load import Asked, Load, requests_of
from benchmarks.serving.result import markdown, result
from benchmarks.serving.rounds import DECODES, Plan, Served
from benchmarks.serving.simulation import BASES, PASSES, fit, lora_bytes, lora_calls, simulate

SMALL = Load(requests=20, prompt=(3, 5), new=4, vocabulary=50)


def test_requests_of_a_seed_are_the_same_and_name_as_many_adapters_as_they_can() -> None:
    asked = requests_of(SMALL, "poisson", 8, rate=4.0, seed=3)
    assert asked == requests_of(SMALL, "poisson", 8, rate=4.0, seed=3)
    assert asked != requests_of(SMALL, "poisson", 8, rate=4.0, seed=4)
    assert {one.adapter for one in asked} == set(range(8))
    assert len({one.adapter for one in requests_of(SMALL, "burst", 512, rate=1.0, seed=0)}) == 20
    assert {one.at for one in requests_of(SMALL, "burst", 1, rate=1.0, seed=0)} == {0.0}
    assert all(3 <= len(one.prompt) <= 5 for one in asked)
    gaps = [
        b.at - a.at
        for seed in range(50)
        for a, b in itertools.pairwise(requests_of(SMALL, "poisson", 1, rate=4.0, seed=seed))
    ]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)


def test_a_clock_counts_work_and_skips_what_nobody_waits_for() -> None:
    now = [5.0]
    clock = Clock(lambda: now[0])
    now[0] += 2
    assert clock.now() == 2
    clock.skip_to(10)
    now[0] += 1
    assert clock.now() == 11
    clock.skip_to(4)
    assert clock.now() == 11


class Engine:
    """Each step takes a second, and gives every request that has come one more token."""

    def __init__(self) -> None:
        self.now = 0.0
        self.running: dict[str, list[int]] = {}
        self.core = self

    def add(self, name: str, prompt: tuple[int, ...], adapter: int, new: int) -> None:
        self.running[name] = [new]

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Any]:
        self.now += 1
        outputs = []
        for name, (new, *tokens) in list(self.running.items()):
            tokens.append(7)
            self.running[name] = [new, *tokens]
            outputs.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens)]))
            if len(tokens) == new:
                del self.running[name]
        return outputs


def test_times_are_those_from_a_requests_own_arrival() -> None:
    engine = Engine()
    asked = [Asked(0.0, (1,), 0), Asked(0.5, (1,), 0), Asked(100.0, (1,), 0)]
    told = drive(engine, asked, 4, lambda: engine.now)
    assert told["first"] == 1.0  # of 1, 1.5 and 1
    assert told["first_high"] == 1.5
    assert told["each"] == 1.0
    assert told["per_second"] == pytest.approx(3 / 104)
    assert len(set(told["answers"])) == 1


def test_a_fit_finds_what_steps_were_made_of() -> None:
    shape, rows, context = BASES["SmolLM2 135M"], 32, 60.0
    bandwidth, speed, efficiency, call = 9e9, 70e9, 0.8, 3e5
    alone = (shape.parameters * 4 + context * shape.kv_bytes(4)) / bandwidth
    base = 2 * rows * shape.parameters / speed
    read = {"lora": lora_bytes(shape, width=4), "lora_qv": lora_bytes(shape, ("q_proj", "k_proj", "v_proj"), width=4)}
    calls = {
        kind: lora_calls(shape, t, stacked=False)
        for kind, t in (("lora", tuple(shape.projections())), ("lora_qv", ("q_proj", "v_proj")))
    }
    ratios = {
        kind: 1 + (PASSES * rows * read[kind] / efficiency + calls[kind] * call) / bandwidth / base for kind in read
    }
    found = fit(shape, rows, alone=alone, base=base, ratios=ratios, context=context)
    assert found.speed.bytes == pytest.approx(bandwidth)
    assert found.speed.operations == pytest.approx(speed)
    assert found.efficiency == pytest.approx(efficiency)
    assert found.call == pytest.approx(call)
    step, whole = simulate("Llama 3.1 70B", found, adapters=512, rank=8, tokens=256)
    assert step > whole > 1
    assert simulate("Llama 3.1 70B", found, adapters=512, rank=16, tokens=256)[0] > step


def test_a_loras_bytes_are_those_of_its_matrices() -> None:
    shape = BASES["SmolLM2 135M"]
    one = 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert lora_bytes(shape) == 30 * one * 2
    assert lora_calls(shape) == 30 * 4 * 2
    assert lora_calls(shape, ("q_proj", "v_proj"), stacked=False) == 30 * 3 * 2
    assert shape.parameters + 576 * 61 == 134_515_008  # the model's own count, its embedding shared; norms beside


def test_a_stopped_run_goes_on_and_its_table_has_what_there_is(tmp_path: Path) -> None:
    kept = Served(tmp_path / "kept.jsonl")
    kept.add({"about": {"commit": "x", "engines": {"device": "d"}}})
    kept.add({"rate": 3.0})
    kept.add({"alone": [0.05, 0.06, 0.07]})
    for kind, speed in (("base", 5.0), ("ours", 4.9), ("lora", 2.4), ("lora_qv", 4.0)):
        for arrival, count in itertools.product(("burst", "poisson"), (8, 64)):
            if kind == "lora_qv" and count == 8:
                continue
            for number in range(2):
                told = {"per_second": speed, "first": 1.0, "first_high": 2.0, "each": 0.1, "answers": [len(kind)]}
                kept.add({"case": f"{arrival}, {count}", "kind": kind, "round": number, "told": told})
        for case in DECODES:
            if kind != "base":
                kept.add({"case": case, "method": kind, "round": 0, "pair": [0.1, 0.5 / speed, 0.1]})
    again = Served.read(kept.file)
    assert (again.told, again.pairs, again.rate) == (kept.told, kept.pairs, 3.0)
    plan = Plan(
        "SmolLM2-135M-x",
        Path("p"),
        tmp_path,
        SMALL,
        ("burst", "poisson"),
        (1, 8, 64),
        ("base", "ours", "lora", "lora_qv"),
        3,
        1,
        "cpu",
    )
    text = markdown(result(plan, again), "command", "serving")
    assert "2.042 (2.042–2.042)" in text  # ours over the LoRA's requests a second
    assert "| 64 | LoRA, q,v | 4.00 | 0.800 (0.800–0.800) | 1.225 (1.225–1.225)" in text
    assert "Simulation" in text
    assert "1.9" in text


def told_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What the command ends with."""
    monkeypatch.setattr("sys.argv", ["serving", *map(str, arguments)])
    monkeypatch.setattr(command, "ensure_base_model", lambda given: "base")
    with pytest.raises(SystemExit) as ended:
        command.main()
    return str(ended.value)


def test_a_table_of_nothing_replaces_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.md").write_text("measured")
    told = told_of(monkeypatch, "--table", "--kept", tmp_path / "none.jsonl", "--output", tmp_path / "result")
    assert "nothing is kept" in told
    assert (tmp_path / "result.md").read_text() == "measured"


@pytest.mark.parametrize(
    "wrong", [["--arrivals", "never"], ["--counts", "3"], ["--rounds", "0"], ["--decodes", "-1"], ["--table"]], ids=str
)
def test_what_is_kept_is_not_dropped_for_a_command_that_is_not_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    (tmp_path / "kept.jsonl").write_text("{}")
    told_of(monkeypatch, "--fresh", "--kept", tmp_path / "kept.jsonl", "--output", tmp_path / "result", *wrong)
    assert (tmp_path / "kept.jsonl").read_text() == "{}"
