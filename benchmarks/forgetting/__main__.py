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
from benchmarks.study.figures import Point, draw
from benchmarks.study.jobs import do_missing
from benchmarks.study.methods import METHODS
from benchmarks.study.options import add_common, listed
from benchmarks.study.provenance import provenance
from benchmarks.study.runs import RESULTS, read
from benchmarks.study.statistics import bootstrap

from .agree import agreement
from .compare import OUTCOMES
from .plan import REGIMES, REMEDIES, arms_of, plan
from .report import markdown
from .routes import routes
from .run import run
from .scores import scores
from .small import small

__all__ = ["main"]

SEQUENCE = ("polite", "camel", "prefix", "clock", "date")
USUAL = ("loreft r4", "lora r8 linear", "full", "loreft r4 all", "lora r1 qv")


KL, LEARNT = "KL(tuned ‖ base) on the new skill's questions", "accuracy when learnt"
FIGURES = (
    ("kl", KL, "loss_rise"),
    ("learnt", LEARNT, "loss_rise"),
    ("kl", KL, "forgetting"),
    ("learnt", LEARNT, "forgetting"),
    ("kl", KL, "text"),
)
"""Score on the x-axis, its label, and the outcome on the y-axis."""


def main() -> None:
    """Do what is missing; `--table` only writes what the runs say."""
    options = argparse.ArgumentParser(description=__doc__)
    add_common(options, RESULTS / "forgetting")
    options.add_argument("--base", choices=BASES, default=BASES[0])
    options.add_argument("--methods", default=",".join(USUAL))
    options.add_argument("--skills", default=",".join(SEQUENCE), help="the first order; others are made of it")
    options.add_argument("--search-skills", default="camel")
    options.add_argument("--regimes", default=",".join(REGIMES))
    options.add_argument("--remedies", default=",".join(REMEDIES))
    options.add_argument("--orders", type=counted, default=5)
    options.add_argument("--seeds", type=counted, default=3)
    options.add_argument("--rates", type=Path, default=RESULTS / "quality.jsonl", help="runs of the search")
    given = options.parse_args()
    file: Path = given.output.with_suffix(".jsonl")
    if not given.table:
        methods = listed(given.methods, METHODS)
        grid = Grid(
            base=given.base,
            identity=identity_of(given.base),
            methods=methods,
            skills=listed(given.skills, SKILLS),
            search_skills=listed(given.search_skills, SKILLS),
            seeds=range(given.seeds),
            steps=given.steps,
            batch=given.batch,
            sizes=given.sizes,
        )
        rates = search(grid, given.rates, jobs=given.jobs, minutes=given.minutes)
        arms = arms_of(methods, regimes=listed(given.regimes, REGIMES), remedies=listed(given.remedies, REMEDIES))
        do_missing(file, plan(grid, arms, rates, given.orders), run, jobs=given.jobs, minutes=given.minutes)
    write(file)


def write(file: Path) -> None:
    """The table and the figures, for each base's weights that the runs are of.

    Raises:
        SystemExit: there are no runs.
    """
    runs = list(read(file).values())
    if not runs:
        raise SystemExit(f"{file} holds no runs; leave --table out to make some, or name their file with --output")
    bases = {}
    for identity in dict.fromkeys(one["settings"]["identity"] for one in runs):
        base = next(one["settings"]["base"] for one in runs if one["settings"]["identity"] == identity)
        bases[base] = found = scores(runs, identity=identity)
        own = [one for one in runs if one["settings"]["identity"] == identity]
        asked, fewer = routes(runs, identity=identity), small(found)
        parts = [
            f"# Forgetting, base {base} ({identity})",
            markdown(found),
            *(["## An adapter each", asked] if asked else []),
            *(["## Fewer blocks", fewer] if fewer else []),
            f"## Runs\n\n{provenance(own)}\n",
        ]
        target, text = file.with_name(f"{file.stem}-{base}"), "\n\n".join(parts)
        target.with_suffix(".md").write_text(text, encoding="utf-8")
        for name, label, outcome in FIGURES:
            points = []
            for arm, blocks in found.items():
                mean, low, high = bootstrap([getattr(one, outcome) for one in blocks.values()])
                x = bootstrap([getattr(one, name) for one in blocks.values()])[0]
                interval = (None, None) if low != low else (low, high)
                if mean != mean:
                    continue  # a router sends no text anywhere
                points.append(Point(str(arm), x, mean, METHODS[arm.method].family, *interval))
            draw(
                points,
                target.with_name(f"{target.name}-{outcome}-{name}.svg".replace("_", "-")),
                x=label,
                y=OUTCOMES[outcome],
                title="Five skills in sequence",
                log_x=name == "kl",
            )
        print(text)
    agreed = agreement(bases)
    if agreed:
        file.with_name(f"{file.stem}-scales.md").write_text(f"# Do bases agree?\n\n{agreed}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
