"""`python -m benchmarks.speed`: the table of what a ReFT costs; see `benchmarks/README.md`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

from benchmarks.speed.about import ROOT
from benchmarks.speed.cases import CASES, FACTS_CASE
from benchmarks.speed.methods import METHODS
from benchmarks.speed.processes import WorkerError
from benchmarks.speed.result import markdown, result, write
from benchmarks.speed.rounds import Kept, Plan, measure, measure_facts

__all__ = ["chosen", "main"]

USUAL = tuple(name for name in CASES if not name.startswith("tiny"))


def main() -> None:
    """Measure what is missing, write the result, print it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", default=",".join(USUAL), help=f"of {', '.join(CASES)}; with commas between")
    options.add_argument("--methods", default=",".join(METHODS), help="with commas between")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--sittings", type=int, default=3, help="sets of fresh processes; rounds go evenly")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: bf16 base, wall time")
    options.add_argument("--environments", type=Path, default=ROOT, help="folder of .venv-pyreft, .venv-adapters")
    options.add_argument("--facts-case", choices=CASES, default=FACTS_CASE)
    options.add_argument("--no-facts", action="store_true", help="the table of ratios alone")
    options.add_argument("--kept", type=Path, help="where measurements are kept; a file in build/speed if left out")
    options.add_argument("--fresh", action="store_true", help="begin again instead of going on with what is kept")
    options.add_argument("--output", type=Path, help="the result without its ending; benchmarks/results/speed")
    given = options.parse_args()
    if not 1 <= given.sittings <= given.rounds:
        options.error(f"--sittings {given.sittings}: from 1 to the number of rounds, {given.rounds}")
    name = "speed" if given.device == "cpu" else f"speed-{given.device}"
    plan = Plan(
        cases=chosen(given.cases, CASES),
        methods=chosen(given.methods, METHODS),
        rounds=given.rounds,
        sittings=given.sittings,
        device=given.device,
        environments=given.environments,
        facts_case=given.facts_case,
    )
    file = given.kept or ROOT / "build" / "speed" / f"{name}.jsonl"
    if given.fresh:
        file.unlink(missing_ok=True)
    for method, reason in plan.absent().items():
        print(f"{method} is left out: {reason}", flush=True)
    kept = Kept.read(file)
    try:
        measure(plan, kept)
        if not given.no_facts:
            measure_facts(plan, kept)
    except WorkerError as error:
        raise SystemExit(f"{error}. What was measured is kept in {file}; the same command goes on") from error
    told = result(plan, kept)
    command = shlex.join(["python", "-m", "benchmarks.speed", *_portable(sys.argv[1:])])
    write(told, given.output or ROOT / "benchmarks" / "results" / name, command)
    print(markdown(told, command))


def chosen(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The names in `text`, in the order of `known`; SystemExit for one that is not known."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise SystemExit(f"{name!r} is none of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _portable(words: list[str]) -> list[str]:
    """The command without places of this machine."""
    places = {"--environments", "--kept", "--output"}
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before not in places and word.partition("=")[0] not in places
    ]


if __name__ == "__main__":
    main()
