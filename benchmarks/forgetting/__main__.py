"""`python -m benchmarks.forgetting`: learn skills in sequence by every arm, write table and figures.

Learning rates are those that the search of `benchmarks.quality` chose, on the same base and steps; it is done first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.quality.plan import Grid
from benchmarks.quality.search import search
from benchmarks.skills.registry import SKILLS
from benchmarks.speed.options import counted
from benchmarks.study.base import BASES, identity_of
from benchmarks.study.jobs import do_missing
from benchmarks.study.methods import METHODS
from benchmarks.study.options import add_common, factor, listed
from benchmarks.study.runs import RESULTS
from benchmarks.study.series import RULES, SEQUENCES, USUAL_TIMES

from .pages import write
from .plan import REGIMES, REMEDIES, arms_of, plan
from .run import run

__all__ = ["main"]

USUAL = ("loreft r4", "lora r8 linear", "full", "loreft r4 all", "lora r1 qv")


def main() -> None:
    """Do what is missing; `--table` only writes what the runs say."""
    options = argparse.ArgumentParser(description=__doc__)
    add_common(options, RESULTS / "forgetting")
    options.add_argument("--base", choices=BASES, default=BASES[0])
    options.add_argument("--methods", default=",".join(USUAL))
    skills = options.add_mutually_exclusive_group()
    skills.add_argument("--sequence", choices=SEQUENCES, default=RULES, help="skills, by the name of their sequence")
    skills.add_argument("--skills", help="other skills, in their first order; further orders are made of it")
    options.add_argument("--search-skills", default="camel")
    options.add_argument("--regimes", default=",".join(REGIMES))
    options.add_argument("--remedies", default=",".join(REMEDIES))
    options.add_argument("--orders", type=counted, default=5)
    options.add_argument("--seeds", type=counted, default=3)
    options.add_argument("--times", type=factor, default=USUAL_TIMES, help="of the rates that the search chose: 1/3")
    options.add_argument("--rates", type=Path, default=RESULTS / "quality.jsonl", help="runs of the search")
    given = options.parse_args()
    file: Path = given.output.with_suffix(".jsonl")
    if not given.table:
        methods = listed(given.methods, METHODS)
        grid = Grid(
            base=given.base,
            identity=identity_of(given.base),
            methods=methods,
            skills=SEQUENCES[given.sequence] if given.skills is None else listed(given.skills, SKILLS),
            search_skills=listed(given.search_skills, SKILLS),
            seeds=range(given.seeds),
            steps=given.steps,
            batch=given.batch,
            sizes=given.sizes,
        )
        rates = search(grid, given.rates, jobs=given.jobs, minutes=given.minutes)
        arms = arms_of(
            methods,
            regimes=listed(given.regimes, REGIMES),
            remedies=listed(given.remedies, REMEDIES),
            times=given.times,
        )
        do_missing(file, plan(grid, arms, rates, given.orders), run, jobs=given.jobs, minutes=given.minutes)
    write(file)


if __name__ == "__main__":
    main()
