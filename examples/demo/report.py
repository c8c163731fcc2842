"""The demo's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from .answers import exact
from .skills import EMOJI, VERDICTS, Skill

__all__ = ["print_report"]

LABELS = {"emoji": "ReFT alone", "verdicts": "LoRA (q, v) + ReFT"}


def print_report(train: Mapping[str, Any], after: Mapping[str, list[str]], *, seconds: float) -> None:
    """Print answers before and after side by side, then the figures of both runs."""
    console = Console(width=118)
    console.print(_side_by_side(train["before"], after))
    table = Table(title="Figures (answers after: from a fresh process that loaded the adapter from the Hub)")
    for column in (
        "skill",
        "adapter",
        "parameters",
        "of a LoRA r 8",
        "exact before",
        "after",
        "held-out",
        "saved",
        "trained",
    ):
        table.add_column(column, justify="left" if column in ("skill", "adapter") else "right")
    for skill in (EMOJI, VERDICTS):
        known = len(skill.train)
        before, given = train["before"][skill.name], after[skill.name]
        held_out = f"{exact(skill.held_out, given[known:])} / {len(skill.held_out)}" if skill.held_out else "–"
        table.add_row(
            skill.name,
            LABELS[skill.name],
            f"{train['parameters'][skill.name]:,}",
            f"{train['parameters'][skill.name] / train['parameters']['lora']:.1%}",
            f"{exact(skill.train, before[:known])} / {known}",
            f"{exact(skill.train, given[:known])} / {known}",
            held_out,
            f"{train['bytes'][skill.name] / 1024:,.0f} KiB",
            f"{train['seconds'][skill.name]:.0f} s",
        )
    console.print(table)
    console.print(
        f"A LoRA of rank 8 on all linear layers has {train['parameters']['lora']:,} parameters. "
        f"The whole demo took {seconds:.0f} s."
    )


def _side_by_side(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> Table:
    table = Table(title="Answers before and after", show_lines=True)
    for column in ("question", "before", "after", "taught"):
        table.add_column(column, overflow="fold")
    for skill in (EMOJI, VERDICTS):
        for index, question, taught in _shown(skill):
            first = before[skill.name][index].replace("\n", " ")
            table.add_row(question, first[:60], after[skill.name][index], taught)
    return table


def _shown(skill: Skill) -> list[tuple[int, str, str]]:
    """All of a small skill; of a large one two taught and four held-out pairs."""
    pairs = [*skill.train, *skill.held_out]
    known = len(skill.train)
    chosen = range(len(pairs)) if len(pairs) < 10 else [0, 6, known, known + 2, known + 4, known + 6]
    return [(i, pairs[i][0], pairs[i][1] if i < known else f"{pairs[i][1]} (held out)") for i in chosen]
