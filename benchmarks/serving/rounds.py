"""Takes the measurements, engine after engine within a round, and keeps each as it comes; a stopped run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.about import commit
from benchmarks.speed.pairing import Pair
from benchmarks.speed.processes import Worker
from benchmarks.speed.rounds import Kept

from .engines import BATCH
from .load import COUNTS, Load

__all__ = ["DECODES", "LOADS", "NARROW", "Plan", "Served", "case_of", "measure"]

DECODES = {"decode": False, "decode, compiled": True}
"""Case of steps that only decode → whether engines compile; vLLM compiles none that has LoRAs on a CPU."""
LOADS = {"base": 0, "ours": max(COUNTS), "lora": max(COUNTS), "lora_qv": 64}
"""Kind → how many adapters its engine holds."""
NARROW = 64
"""The decoding steps are of requests for so many adapters, and so are the q,v LoRAs."""
SHARE = 0.75
"""Requests arrive at this share of what the base answers in a burst."""
STEPS, ROOM, ALONE = 2, 72, 15
"""Steps of one measurement; how many tokens a request generates before it is started anew; measurements of one."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        base: folder of the base.
        python: that runs engines.
        adapters: folder of the adapters' folders.
        load: sizes.
        arrivals, counts: of the cases.
        kinds: of engines.
        rounds: of every case.
        decodes: rounds of the steps that only decode.
        device: `"cpu"` or `"cuda"`.
    """

    base: str
    python: Path
    adapters: Path
    load: Load
    arrivals: Sequence[str]
    counts: Sequence[int]
    kinds: Sequence[str]
    rounds: int
    decodes: int
    device: str

    def cases(self) -> Iterator[tuple[str, str, int]]:
        """(case, arrival, adapters) of the served loads."""
        for arrival in self.arrivals:
            for count in self.counts:
                yield case_of(arrival, count), arrival, count

    def kinds_of(self, count: int) -> list[str]:
        """The engines that a case asks."""
        return [kind for kind in self.kinds if kind != "lora_qv" or count == NARROW]


def case_of(arrival: str, count: int) -> str:
    """Name of a served load."""
    return f"{arrival}, {count}"


@dataclass
class Served(Kept):
    """The measurements so far: what engines told of each load, and pairs of decoding steps.

    Attributes:
        told: (case, kind) → round → figures.
        rate: requests a second of the Poisson arrivals.
        alone: seconds of steps of the base that decode one request.
    """

    told: dict[tuple[str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)
    rate: float | None = None
    alone: list[float] = field(default_factory=list)

    def _take(self, record: dict[str, Any]) -> None:
        if "told" in record:
            self.told.setdefault((record["case"], record["kind"]), {})[record["round"]] = record["told"]
        elif "rate" in record:
            self.rate = record["rate"]
        elif "alone" in record:
            self.alone = record["alone"]
        else:
            super()._take(record)


def measure(plan: Plan, kept: Served) -> None:
    """All that is not there yet; the engines that compile are others, and come last."""
    loads = _missing(plan, kept)
    for case, compiled in DECODES.items():
        kinds = _undecoded(plan, kept, case, compiled=compiled)
        asked = {kind for *_, kind in loads} if not compiled else set()
        if not kinds and not asked:
            continue
        with ExitStack() as processes:
            needed = [kind for kind in plan.kinds if kind == "base" or kind in {*kinds, *asked}]
            workers = _workers(plan, kept, needed, processes, compiled=compiled)
            _measure_decode(plan, kept, case, workers, kinds)
            if not compiled:
                _measure_loads(plan, kept, loads, workers)


def _missing(plan: Plan, kept: Served) -> list[tuple[int, str, str, int, str]]:
    """(round, case, arrival, adapters, kind) of the loads that are not there yet."""
    return [
        (number, case, arrival, count, kind)
        for number in range(plan.rounds)
        for case, arrival, count in plan.cases()
        for kind in (plan.kinds_of(count) if number % 2 else plan.kinds_of(count)[::-1])
        if number not in kept.told.get((case, kind), {})
    ]


def _measure_loads(
    plan: Plan, kept: Served, missing: Sequence[tuple[int, str, str, int, str]], workers: Mapping[str, Worker]
) -> None:
    for worker in workers.values():
        worker.ask(do="drain")
    if missing and kept.rate is None:
        message = _message(plan, "burst", 1, rate=1.0, seed=0)
        kept.add({"rate": round(SHARE * workers["base"].ask(**message)["per_second"], 2)})
    for number, case, arrival, count, kind in missing:
        told = workers[kind].ask(**_message(plan, arrival, count, rate=kept.rate or 1.0, seed=number))
        kept.add({"case": case, "kind": kind, "round": number, "told": told})
        print(f"{case}, {kind}, round {number}: {told['per_second']:.2f} requests/s", flush=True)


def _undecoded(plan: Plan, kept: Served, case: str, *, compiled: bool) -> list[str]:
    """Kinds of which a round of decoding steps is not there yet."""
    kinds = [kind for kind in plan.kinds if kind != "base" and not (compiled and kind != "ours")]
    return [kind for kind in kinds if any(n not in kept.pairs.get((case, kind), {}) for n in range(plan.decodes))]


def _measure_decode(plan: Plan, kept: Served, case: str, workers: Mapping[str, Worker], kinds: Sequence[str]) -> None:
    if kinds and not DECODES[case] and not kept.alone:
        _fill(plan, {"base": workers["base"]}, 0, requests=1)
        kept.add({"alone": [workers["base"].ask(do="decode", steps=STEPS)["seconds"] for _ in range(ALONE)]})
    left = 0
    for number in range(plan.decodes):
        for kind in kinds if number % 2 else kinds[::-1]:
            if number in kept.pairs.get((case, kind), {}):
                continue
            if left < (2 * len(kinds) + 2) * STEPS:
                _fill(plan, workers, number)
                left = ROOM - 8
            taken = [workers[who].ask(do="decode", steps=STEPS)["seconds"] for who in ("base", kind, "base")]
            left -= 2 * STEPS
            kept.add({"case": case, "method": kind, "round": number, "pair": taken})
            print(f"{case}, {kind}, round {number}: {Pair(*taken).ratio:.4f}", flush=True)


def _fill(plan: Plan, workers: Mapping[str, Worker], seed: int, *, requests: int = BATCH) -> None:
    """The same batch in every engine, none of whose requests ends while it is measured."""
    load = Load(requests=requests, new=ROOM + 20, vocabulary=plan.load.vocabulary)
    for worker in workers.values():
        worker.ask(do="drain")
        worker.ask(do="fill", load=asdict(load), adapters=NARROW, seed=seed)


def _workers(
    plan: Plan, kept: Served, kinds: Sequence[str], processes: ExitStack, *, compiled: bool
) -> dict[str, Worker]:
    made = {}
    for kind in kinds:
        log = kept.file.with_suffix(f".{kind}.log")
        worker = Worker(plan.python, plan.device, log, words=("benchmarks.serving.worker",))
        made[kind] = processes.enter_context(worker)
        held = min(LOADS[kind], NARROW if compiled else max(NARROW, *plan.counts))
        worker.ask(do="make", kind=kind, base=plan.base, adapters=str(plan.adapters), count=held, compiled=compiled)
        print(f"{kind}: made, with {held} adapters{', compiled' if compiled else ''}", flush=True)
    kept.measured_on({"commit": commit(), "engines": made[kinds[0]].ask(do="about")})
    return made


def _message(plan: Plan, arrival: str, count: int, *, rate: float, seed: int) -> dict[str, Any]:
    return {
        "do": "serve",
        "load": asdict(plan.load),
        "arrival": arrival,
        "adapters": count,
        "rate": rate,
        "seed": seed,
    }
