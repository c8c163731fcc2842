"""`python -m benchmarks.speed.growth`: how the cost of an edit grows, size by size; see `benchmarks/README.md`."""

from __future__ import annotations

import argparse

import torch

from benchmarks.many_adapters import pair
from benchmarks.speed.axes import AXES, POINTS
from benchmarks.speed.growth_figure import draw
from benchmarks.speed.growth_result import MANY, growth_markdown, growth_result, write_growth
from benchmarks.speed.methods import ENVIRONMENTS, METHODS
from benchmarks.speed.options import RESULTS, add_places, chosen, command_line, opened, resumable
from benchmarks.speed.rounds import Kept, Plan, measure
from benchmarks.speed.work import seconds_of

__all__ = ["main", "measure_many"]

OWN = tuple(name for name in METHODS if ENVIRONMENTS[name] == "own")


def main() -> None:
    """Measure what is missing, write table and figures, print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--axes", default=";".join(AXES), help=f"of {'; '.join(AXES)}; with semicolons between")
    options.add_argument("--without", help="points that cost too much here, e.g. 'sequence length 4096'; semicolons")
    options.add_argument("--methods", default="ours", help=f"of {', '.join(OWN)}; with commas between")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--sittings", type=int, default=1, help="sets of fresh processes; rounds go evenly")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: bf16 base, wall time")
    options.add_argument("--no-many", action="store_true", help="leave out the rows of many adapters on a real model")
    add_places(options)
    given = options.parse_args()
    if not 1 <= given.sittings <= given.rounds:
        options.error(f"--sittings {given.sittings}: from 1 to the number of rounds, {given.rounds}")
    if given.rounds < 3:
        options.error(f"--rounds {given.rounds}: fewer than 3 have no spread, and a slope no interval")
    axes = chosen(given.axes, AXES, ";")
    left_out = chosen(given.without, POINTS, ";") if given.without else ()
    cases = tuple(name for axis in axes for name in AXES[axis].cases() if name not in left_out)
    plan = Plan(cases, chosen(given.methods, OWN), given.rounds, given.sittings, given.device)
    name = "growth" if given.device == "cpu" else f"growth-{given.device}"
    kept = opened(given, name)
    with resumable(kept):
        measure(plan, kept)
    if not given.no_many:
        measure_many(kept, given.rounds, given.device)
    told = growth_result(plan, kept, axes)
    stem, command = given.output or RESULTS / name, command_line("benchmarks.speed.growth")
    write_growth(told, stem, command)
    draw(told, stem.with_suffix(".svg"))
    print(growth_markdown(told, command, stem.name))


def measure_many(kept: Kept, rounds: int, device: str) -> None:
    """A batch with another adapter for every row, between two runs with one for all; in this process."""
    there = kept.pairs.get(MANY, {})
    missing = [number for number in range(rounds) if number not in there]
    if not missing:
        return
    if device == "cpu":
        torch.set_num_threads(1)
    one, many = pair(device)
    for work in (one, many):
        work()
    case, method = MANY
    for number in missing:
        taken = [seconds_of(work, 1, device) for work in (one, many, one)]
        kept.add({"case": case, "method": method, "round": number, "pair": taken})
        print(f"{case}, round {number}: {kept.pairs[MANY][number].ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
