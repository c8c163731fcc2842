"""`python -m benchmarks.quality`: search learning rates, learn every skill by every method, write table and figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.skills.registry import SKILLS
from benchmarks.study.base import BASES, identity_of
from benchmarks.study.figures import Point, draw
from benchmarks.study.jobs import do_missing
from benchmarks.study.methods import METHODS
from benchmarks.study.options import add_common, listed
from benchmarks.study.provenance import provenance
from benchmarks.study.runs import RESULTS, read
from benchmarks.study.series import by_series

from .ablation import ablation
from .moved import moved
from .plan import Grid, figures_plan
from .report import Block, Line, block_sets, front, lines, markdown, told
from .run import run
from .search import search

__all__ = ["main"]

SKILLS_OF_STUDY = ("date", "clock", "camel", "prefix", "code_names", "polite", "spell_backward", "gcd")
SEARCHED = ("camel",)


def main() -> None:
    """Do what is missing; `--table` only writes what the runs say."""
    options = argparse.ArgumentParser(description=__doc__)
    add_common(options, RESULTS / "quality")
    options.add_argument("--base", choices=BASES, default=BASES[0])
    options.add_argument("--methods", default=",".join(METHODS), help="with commas between")
    options.add_argument("--skills", default=",".join(SKILLS_OF_STUDY))
    options.add_argument("--search-skills", default=",".join(SEARCHED))
    options.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    given = options.parse_args()
    file: Path = given.output.with_suffix(".jsonl")
    if not given.table:
        grid = Grid(
            base=given.base,
            identity=identity_of(given.base),
            methods=listed(given.methods, METHODS),
            skills=listed(given.skills, SKILLS),
            search_skills=listed(given.search_skills, SKILLS),
            seeds=range(given.seeds),
            steps=given.steps,
            batch=given.batch,
            sizes=given.sizes,
        )
        rates = search(grid, file, jobs=given.jobs, minutes=given.minutes)
        do_missing(file, figures_plan(grid, rates), run, jobs=given.jobs, minutes=given.minutes)
    write(file)


def write(file: Path) -> None:
    """The table and the figures of each base's weights and of each series that runs are of."""
    runs = [run for run in read(file).values() if run["settings"]["study"] == "quality"]
    for (identity, series), own in by_series(runs).items():
        tables = [(blocks, lines(own, blocks)) for blocks in block_sets(own)]
        made = tables[0][1]
        base = own[0]["settings"]["base"]
        changed, general = ablation(own), moved(made)
        parts = [
            f"# Quality, base {series.on(f'{base} ({identity})')}",
            *(_section(over, blocks) for blocks, over in tables),
            *(["## One thing changed at a time", changed] if changed else []),
            *(["## General text", general] if general else []),
            f"## Runs\n\n{provenance(own)}\n",
        ]
        text = "\n\n".join(parts)
        target = file.with_name(f"{file.stem}-{base}{series.suffix}")
        target.with_suffix(".md").write_text(text, encoding="utf-8")
        _draw(made, target)
        print(text)


def _section(over: list[Line], blocks: frozenset[Block]) -> str:
    heading = f"## {len(over)} methods over the same {len(blocks)} blocks"
    return f"{heading}\n\nSkills and seeds: {told(blocks)}.\n\n{markdown(over)}"


def _draw(made: list[Line], target: Path) -> None:
    """Accuracy against parameters, with the front; and what general text loses against KL and against accuracy."""
    families = {line.method: METHODS[line.method].family for line in made}
    draw(
        [Point(one.method, one.parameters, one.accuracy[0], families[one.method], *one.accuracy[1:]) for one in made],
        target.with_suffix(".svg"),
        x="parameters trained",
        y="accuracy on held-out questions",
        title="Skills learnt one at a time",
        log_x=True,
        line=[(one.parameters, one.accuracy[0]) for one in front(made)],
    )
    for name, label in (("kl", "KL(tuned ‖ base) on the skill's questions"), ("accuracy", "accuracy when learnt")):
        at = {one.method: one.kl if name == "kl" else one.accuracy[0] for one in made}
        draw(
            [Point(one.method, at[one.method], one.text[0], families[one.method], *one.text[1:]) for one in made],
            target.with_name(f"{target.name}-text-{name}.svg"),
            x=label,
            y="text loss rise",
            title="Skills learnt one at a time",
            log_x=name == "kl",
        )


if __name__ == "__main__":
    main()
