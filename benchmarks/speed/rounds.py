"""Takes the measurements, round by round, and keeps each in a file as it comes: a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.about import ROOT, commit
from benchmarks.speed.cases import FACTS_CASE
from benchmarks.speed.methods import ENVIRONMENTS
from benchmarks.speed.pairing import Pair
from benchmarks.speed.processes import Worker, python_of, variables

__all__ = ["Kept", "Plan", "measure", "measure_facts"]


@dataclass(frozen=True)
class Plan:
    """What to measure. A sitting is a set of fresh processes; the rounds are spread over them evenly."""

    cases: tuple[str, ...]
    methods: tuple[str, ...]
    rounds: int
    sittings: int
    device: str
    environments: Path = ROOT
    facts_case: str = FACTS_CASE

    def sitting_of(self, number: int) -> int:
        """In which sitting round `number` is taken."""
        return number * self.sittings // self.rounds

    def pythons(self) -> dict[str, Path]:
        """Environment → interpreter, of those that are needed and there."""
        needed = {ENVIRONMENTS[method] for method in self.methods}
        found = {name: python_of(name, self.environments) for name in sorted(needed)}
        return {name: python for name, python in found.items() if python is not None}

    def absent(self) -> dict[str, str]:
        """Method → why it cannot be measured here."""
        there = self.pythons()
        return {
            method: f"no environment: make it by `python -m benchmarks.speed.environments {ENVIRONMENTS[method]}`"
            for method in self.methods
            if ENVIRONMENTS[method] not in there
        }


@dataclass
class Kept:
    """The measurements so far, and the file that holds them, one JSON a line."""

    file: Path
    about: dict[str, Any] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[int, Pair]] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Kept:
        """What an earlier run left in `file`; a line that it was stopped in is passed over, and ended."""
        kept = cls(file)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if text and not text.endswith("\n"):
            file.write_text(text + "\n", encoding="utf-8")
        for line in text.splitlines():
            try:
                kept._take(json.loads(line))
            except json.JSONDecodeError:
                continue
        return kept

    def add(self, record: dict[str, Any]) -> None:
        """Into the file, then into memory."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        self._take(record)

    def measured_on(self, about: dict[str, Any]) -> None:
        """Refuses to go on elsewhere: figures of two machines or of two states of the code are no one table."""
        for name, told in about.items():
            if self.about.get(name, told) != told:
                raise SystemExit(
                    f"{self.file} was begun on {name} {self.about[name]}, and this is {told}: give --fresh to begin "
                    "again, or finish it there"
                )
        if {**self.about, **about} != self.about:
            self.add({"about": {**self.about, **about}})

    def _take(self, record: dict[str, Any]) -> None:
        if "about" in record:
            self.about = record["about"]
        elif "facts" in record:
            self.facts.setdefault(record["method"], {}).update(record["facts"])
            self.failed.pop((record["case"], record["method"]), None)
        elif "failed" in record:
            self.failed[record["case"], record["method"]] = record["failed"]
        else:
            key = record["case"], record["method"]
            self.pairs.setdefault(key, {})[record["round"]] = Pair(*record["pair"])
            self.failed.pop(key, None)


def measure(plan: Plan, kept: Kept) -> None:
    """All rounds of the plan that are not there yet: floor, method, floor, the methods in turn within a round."""
    for sitting in range(plan.sittings):
        numbers = [number for number in range(plan.rounds) if plan.sitting_of(number) == sitting]
        with ExitStack() as processes:
            workers = {
                name: processes.enter_context(Worker(python, plan.device, kept.file.with_suffix(f".{name}.log")))
                for name, python in plan.pythons().items()
            }
            kept.measured_on({"commit": commit(), **{name: one.ask(do="about") for name, one in workers.items()}})
            for case in plan.cases:
                _measure_case(plan, kept, case, numbers, workers)


def _measure_case(plan: Plan, kept: Kept, case: str, numbers: list[int], workers: dict[str, Worker]) -> None:
    methods = [method for method in plan.methods if ENVIRONMENTS[method] in workers]
    missing = {m: [n for n in numbers if n not in kept.pairs.get((case, m), {})] for m in methods}
    methods = [method for method in methods if missing[method]]
    for name, worker in workers.items():
        here = [method for method in methods if ENVIRONMENTS[method] == name]
        if not here:
            continue
        for method, reason in worker.ask(do="make", case=case, methods=here)["failed"].items():
            kept.add({"case": case, "method": method, "failed": reason})
            methods.remove(method)
            print(f"{case}, {method}: {reason}", flush=True)
    for number in numbers:
        for method in methods if number % 2 else methods[::-1]:
            if number not in missing[method]:
                continue
            worker = workers[ENVIRONMENTS[method]]
            taken = [
                worker.ask(do="time", method=method, which=which)["seconds"] for which in ("floor", "method", "floor")
            ]
            kept.add({"case": case, "method": method, "round": number, "pair": taken})
            print(f"{case}, {method}, round {number}: {Pair(*taken).ratio:.3f}", flush=True)


def measure_facts(plan: Plan, kept: Kept) -> None:
    """The parts of `benchmarks.speed.facts` that are not there yet, each in a fresh process."""
    pythons = plan.pythons()
    for method in plan.methods:
        environment = ENVIRONMENTS[method]
        if environment not in pythons:
            continue
        folder = kept.file.with_suffix(".facts") / method
        if "bytes on disk" not in kept.facts.get(method, {}):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        for who, part, shown in (
            (method, "keep", "bytes on disk"),
            (method, "further", "further adapter, MiB"),
            (method, "step", "peak memory, MiB"),
            ("floor", "step", "peak memory, MiB"),
            (method, "calls", "calls of a step, once"),
        ):
            name = f"floor, {environment}" if who == "floor" else method
            if shown in kept.facts.get(name, {}):
                continue
            words = [str(pythons[environment]), "-m", "benchmarks.speed.facts", who, part, "--folder", str(folder)]
            words += ["--case", plan.facts_case, "--device", plan.device]
            done = subprocess.run(words, cwd=ROOT, env=variables(plan.device), capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no error told"])[-1]
                kept.add({"case": part, "method": name, "failed": reason})
                print(f"{part}, {name}: {reason}", flush=True)
                continue
            facts = json.loads(done.stdout.splitlines()[-1])
            kept.add({"case": part, "method": name, "facts": facts})
            print(f"{part}, {name}: {facts}", flush=True)
