"""What the commands of both studies take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

from benchmarks.speed.options import counted

__all__ = ["add_common", "factor", "listed", "minutes", "three"]

STEPS, BATCH, SIZES = 20, 8, (256, 32, 32)


def add_common(options: argparse.ArgumentParser, output: Path) -> None:
    """What both say: processes and minutes, where runs are kept, how much is learnt, and `--table`."""
    options.add_argument("--jobs", type=counted, default=1, help="processes, one thread each")
    options.add_argument("--minutes", type=minutes, help="begin no run after so many, in each part")
    options.add_argument("--output", type=Path, default=output, help="the file of runs, and tables, without ending")
    options.add_argument("--steps", type=counted, default=STEPS, help="of learning a skill")
    options.add_argument("--batch", type=counted, default=BATCH, help="examples of a step")
    options.add_argument("--sizes", type=three, default=SIZES, help="examples in train, validation, held-out")
    options.add_argument("--table", action="store_true", help="only write tables and figures from the runs")


def listed(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Names with commas between, in the order given.

    Raises:
        SystemExit: a name that is not known, or that stands twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise SystemExit(f"{name!r} is none of {', '.join(known)}")
    if len(set(names)) != len(names):
        raise SystemExit(f"{text!r} has a name twice")
    return names


def three(text: str) -> tuple[int, int, int]:
    """Three whole numbers from 1 on with commas between.

    Raises:
        ValueError, ArgumentTypeError: it is something else.
    """
    one, two, last = (counted(part.strip()) for part in text.split(","))
    return one, two, last


def minutes(text: str) -> float:
    """A time above 0.

    Raises:
        ValueError, ArgumentTypeError: it is something else.
    """
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no time above 0")
    return float(text)


def factor(text: str) -> str:
    """A whole number or a fraction above 0, in lowest terms.

    Raises:
        ValueError, ArgumentTypeError: it is something else.
    """
    if re.fullmatch(r"[0-9]{1,4}(/0*[1-9][0-9]{0,3})?", text) is None or not Fraction(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number and no fraction above 0, like 3 or 1/3")
    return str(Fraction(text))
