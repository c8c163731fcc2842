"""What the commands share: names on the command line, where measurements and results are, how a run is told again."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.speed.about import ROOT
from benchmarks.speed.processes import WorkerError
from benchmarks.speed.rounds import Kept

__all__ = ["RESULTS", "add_places", "chosen", "command_line", "counted", "opened", "resumable"]

RESULTS = ROOT / "benchmarks" / "results"


def add_places(options: argparse.ArgumentParser) -> None:
    """`--kept`, `--fresh`, `--output`."""
    options.add_argument("--kept", type=Path, help="where measurements are kept; a file in build/speed if left out")
    options.add_argument("--fresh", action="store_true", help="begin again instead of going on with what is kept")
    options.add_argument(
        "--output", type=Path, help="the result without its ending; in benchmarks/results if left out"
    )


def counted(text: str) -> int:
    """A number on the command line, 1 or more.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 on")
    return int(text)


def opened(given: argparse.Namespace, name: str) -> Kept:
    """What is kept of this measurement; nothing with `--fresh`."""
    file = given.kept or ROOT / "build" / "speed" / f"{name}.jsonl"
    if given.fresh:
        file.unlink(missing_ok=True)
    return Kept.read(file)


@contextmanager
def resumable(kept: Kept) -> Iterator[None]:
    """Where a worker fails, end with the word that the same command goes on."""
    try:
        yield
    except WorkerError as error:
        raise SystemExit(f"{error}. What was measured is kept in {kept.file}; the same command goes on") from error


def chosen(text: str, known: Collection[str], between: str = ",") -> tuple[str, ...]:
    """The names in `text`, in the order of `known`; SystemExit for one that is not known."""
    names = [name.strip() for name in text.split(between)]
    for name in names:
        if name not in known:
            raise SystemExit(f"{name!r} is none of {f'{between} '.join(known)}")
    return tuple(name for name in known if name in names)


def command_line(module: str) -> str:
    """The command that runs now, without places of this machine."""
    places, words = {"--environments", "--kept", "--output"}, sys.argv[1:]
    told = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before not in places and word.partition("=")[0] not in places
    ]
    return shlex.join(["python", "-m", module, *told])
