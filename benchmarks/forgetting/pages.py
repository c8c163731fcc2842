"""The pages and figures of the study of forgetting: one of each for a base and a series, and how alike they rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.study.figures import Point, draw
from benchmarks.study.methods import METHODS
from benchmarks.study.provenance import provenance
from benchmarks.study.runs import read
from benchmarks.study.series import USUAL_TIMES, Series, by_series
from benchmarks.study.statistics import bootstrap

from .agree import agreement
from .compare import OUTCOMES
from .plan import Arm
from .rates import rates
from .report import markdown
from .routes import routes
from .scores import Block, Scores, scores
from .small import small

__all__ = ["write"]

Found = Mapping[Arm, Mapping[Block, Scores]]
KL, LEARNT = "KL(tuned ‖ base) on the new skill's questions", "accuracy when learnt"
FIGURES = (
    ("kl", KL, "loss_rise"),
    ("learnt", LEARNT, "loss_rise"),
    ("kl", KL, "forgetting"),
    ("learnt", LEARNT, "forgetting"),
    ("kl", KL, "text"),
)
"""Score on the x-axis, its label, and the outcome on the y-axis."""


def write(file: Path) -> None:
    """The table and the figures, for each base's weights and each series that the runs are of; pages over all of them.

    Raises:
        SystemExit: there are no runs.
    """
    runs = list(read(file).values())
    if not runs:
        raise SystemExit(f"{file} holds no runs; leave --table out to make some, or name their file with --output")
    told: dict[Series, dict[str, Found]] = {}
    for (identity, series), own in by_series(runs).items():
        base = own[0]["settings"]["base"]
        told.setdefault(series, {})[base] = found = scores(own)
        if series.times != USUAL_TIMES:
            continue  # told beside the searched rates, on the page of rates
        # of the small study's series alone: no command runs the seed 0 of another by itself
        asked, fewer = routes(own), "" if series.told else small(found)
        parts = [
            f"# Forgetting, base {series.on(f'{base} ({identity})')}",
            markdown(found),
            *(["## An adapter each", asked] if asked else []),
            *(["## Fewer blocks", fewer] if fewer else []),
            f"## Runs\n\n{provenance(own)}\n",
        ]
        target, text = file.with_name(f"{file.stem}-{base}{series.suffix}"), "\n\n".join(parts)
        target.with_suffix(".md").write_text(text, encoding="utf-8")
        _draw(found, target, f"Skills in sequence: {series.told}" if series.told else "Five skills in sequence")
        print(text)
    for name, text in (("scales", _agreed(told)), ("rates", rates(runs))):
        if text:
            file.with_name(f"{file.stem}-{name}.md").write_text(f"{text}\n", encoding="utf-8")


def _draw(found: Found, target: Path, title: str) -> None:
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
            title=title,
            log_x=name == "kl",
        )


def _agreed(told: Mapping[Series, Mapping[str, Found]]) -> str:
    """Bases within each series, then series within each base; empty where neither can be compared."""
    bases = [agreement({series.on(base): found for base, found in held.items()}) for series, held in told.items()]
    names = dict.fromkeys(base for held in told.values() for base in held)
    series = [
        agreement(
            {f"{base}, {one.told or 'usual'}": held[base] for one, held in told.items() if base in held},
            paired=False,
        )
        for base in names
    ]
    sections = (("# Do bases agree?", bases), ("# Do series agree?", series))
    return "\n\n".join("\n\n".join([heading, *filter(None, parts)]) for heading, parts in sections if any(parts))
