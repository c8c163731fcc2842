"""What the learning rate does to forgetting: the same arms at the rates that the search chose, and at others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.study.provenance import provenance
from benchmarks.study.series import USUAL_TIMES, Series, series_of, times_of

from .compare import REFERENCE
from .plan import Arm
from .report import EXPLAINED, compared, table
from .scores import Block, Scores, scores

__all__ = ["rates"]

Found = Mapping[Arm, Mapping[Block, Scores]]


def rates(runs: Iterable[Mapping[str, Any]]) -> str:
    """For each base and series that was run at several rates: its arms, and what another rate changes. Empty for none.

    Arms at other rates are compared with themselves at the searched one, and each method at each of its rates with
    the reference at each of its own: whether a method forgets less, or was only given another rate.
    """
    grouped: dict[tuple[str, str, Series], list[Mapping[str, Any]]] = {}
    for run in runs:
        settings = run["settings"]
        usual = replace(series_of(settings), times=USUAL_TIMES)
        grouped.setdefault((settings["base"], settings["identity"], usual), []).append(run)
    parts = []
    for (base, _, series), own in grouped.items():
        found = scores(own)
        if any(map(_is_moved, found)):
            parts += _section(series.on(base), _searched(found), own)
    return "\n\n".join(["# Other learning rates", *parts, EXPLAINED]) if parts else ""


def _section(name: str, found: Found, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    chosen = _chosen(runs, {arm.method for arm in found}).items()
    told = ", ".join(f"`{method}` {rate:g}" for method, rate in chosen)
    elsewhere = [run for run in runs if times_of(run["settings"]) != USUAL_TIMES]
    return [
        f"## {name}",
        f"Searched rates: {told}.",
        table(found),
        compared(found, _pairs(found)),
        f"Runs at other rates:\n\n{provenance(elsewhere)}",
    ]


def _searched(found: Found) -> dict[Arm, Mapping[Block, Scores]]:
    """The arms at other rates, the same and the reference at the searched ones, over the blocks of those at others."""
    moved = list(filter(_is_moved, found))
    usual = [replace(arm, times=USUAL_TIMES) for arm in moved]
    wanted = dict.fromkeys((*usual, *(replace(arm, method=REFERENCE) for arm in usual), *moved))
    blocks = {block for arm in moved for block in found[arm]}
    return {
        arm: {block: one for block, one in found[arm].items() if block in blocks} for arm in wanted if arm in found
    }


def _pairs(found: Found) -> list[tuple[Arm, Arm]]:
    own = [(arm, replace(arm, times=USUAL_TIMES)) for arm in filter(_is_moved, found)]
    others = [
        (arm, reference)
        for arm in found
        for reference in found
        if arm.method != REFERENCE and reference == replace(arm, method=REFERENCE, times=reference.times)
        if _is_moved(arm) or _is_moved(reference)  # both as the search chose stand in the usual tables
    ]
    return [pair for pair in (*own, *others) if pair[1] in found]


def _is_moved(arm: Arm) -> bool:
    """Whether its rate is another than the search chose."""
    return arm.times != USUAL_TIMES


def _chosen(runs: Iterable[Mapping[str, Any]], methods: set[str]) -> dict[str, float]:
    """Method → the rate that the search chose."""
    return {
        run["settings"]["method"]: run["settings"]["rate"]
        for run in runs
        if times_of(run["settings"]) == USUAL_TIMES and run["settings"]["method"] in methods
    }
