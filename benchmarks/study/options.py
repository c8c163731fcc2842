"""What the commands of both studies take."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

__all__ = ["add_common", "listed", "three"]

STEPS, BATCH, SIZES = 20, 8, (256, 32, 32)


def add_common(options: argparse.ArgumentParser, output: Path) -> None:
    """What both say: processes and minutes, where runs are kept, how much is learnt, and `--table`."""
    options.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    options.add_argument("--minutes", type=float, help="begin no run after so many, in each part")
    options.add_argument("--output", type=Path, default=output, help="the file of runs, and tables, without ending")
    options.add_argument("--steps", type=int, default=STEPS, help="of learning a skill")
    options.add_argument("--batch", type=int, default=BATCH, help="examples of a step")
    options.add_argument("--sizes", type=three, default=SIZES, help="examples in train, validation, held-out")
    options.add_argument("--table", action="store_true", help="only write tables and figures from the runs")


def listed(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Names with commas between, in the order given.

    Raises:
        SystemExit: a name that is not known.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise SystemExit(f"{name!r} is none of {', '.join(known)}")
    return names


def three(text: str) -> tuple[int, int, int]:
    """Three whole numbers with commas between.

    Raises:
        ValueError: it is something else.
    """
    one, two, last = (int(part) for part in text.split(","))
    return one, two, last
