"""Runs and where they are kept: one JSON line each, under a key of its settings, written when the run ends."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.about import ROOT, commit
from peft_reft.hub_format.folder_lock import folder_lock

__all__ = ["RESULTS", "Settings", "append", "key_of", "machine", "read", "results_of"]

RESULTS = ROOT / "benchmarks" / "results"
Settings = dict[str, Any]
"""What a run is of; JSON values, flat."""
PACKAGES = ("torch", "transformers", "peft", "peft-reft", "reasoning-gym")


def key_of(settings: Settings) -> str:
    """Sixteen digits that stand for the settings, in whatever order they are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Key → run, of a file that may not be there; a last line that was cut off does not count.

    Raises:
        ValueError: a line in the middle is no run, or its key is not that of its settings.
    """
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").split("\n")
    found = {}
    for number, line in enumerate(lines[:-1]):
        try:
            run = json.loads(line)
            fits = run["key"] == key_of(run["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file.name}, line {number + 1} is no run: {line[:80]!r}") from error
        if not fits:
            raise ValueError(f"{file.name}, line {number + 1}: the key is not that of its settings")
        found[run["key"]] = run
    return found


def append(file: Path, settings: Settings, result: dict[str, Any]) -> None:
    """Add a run; on the disk when this returns. What an interrupted write left at the end is cut off first.

    Several processes may add to one file: one at a time cuts and writes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    run = {"key": key_of(settings), "settings": settings, "result": result, "machine": machine()}
    with folder_lock(file.parent), open(file, "a+b") as handle:
        handle.seek(0)
        whole = handle.read()
        handle.truncate(whole.rfind(b"\n") + 1)
        handle.seek(0, os.SEEK_END)
        handle.write(json.dumps(run, sort_keys=True).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def results_of(runs: Iterable[dict[str, Any]], **wanted: Any) -> Iterator[tuple[Settings, dict[str, Any]]]:
    """(settings, result) of the runs whose settings have these values."""
    for run in runs:
        if all(run["settings"].get(name) == value for name, value in wanted.items()):
            yield run["settings"], run["result"]


def machine() -> dict[str, str]:
    """Hardware and versions, as a run records them."""
    from benchmarks.speed.about import of_this_process

    told = of_this_process("cpu")
    told["cores"] = str(os.cpu_count())
    told["commit"] = commit()
    told["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            told[package] = version(package)
        except Exception:  # not installed: the run did not need it
            continue
    return told
