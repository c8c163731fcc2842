"""`python -m benchmarks.speed`: the table of what a ReFT costs; see `benchmarks/README.md`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.speed.about import ROOT
from benchmarks.speed.cases import CASES, FACTS_CASE
from benchmarks.speed.methods import METHODS
from benchmarks.speed.options import RESULTS, add_places, chosen, command_line, opened, resumable
from benchmarks.speed.result import markdown, result, write
from benchmarks.speed.rounds import Plan, measure, measure_facts

__all__ = ["main"]

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
    add_places(options)
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
    for method, reason in plan.absent().items():
        print(f"{method} is left out: {reason}", flush=True)
    kept = opened(given, name)
    with resumable(kept):
        measure(plan, kept)
        if not given.no_facts:
            measure_facts(plan, kept)
    told = result(plan, kept)
    command = command_line("benchmarks.speed")
    write(told, given.output or RESULTS / name, command)
    print(markdown(told, command))


if __name__ == "__main__":
    main()
