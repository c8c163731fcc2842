"""Does the runs that are missing, in processes of one thread each, and tells how far it is."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .runs import Settings, append, key_of, read

__all__ = ["do_missing"]

Work = Callable[[Settings], dict[str, Any]]


def do_missing(
    file: Path, plan: Sequence[Settings], work: Work, *, jobs: int = 1, minutes: float | None = None
) -> int:
    """Do the runs of a plan that the file has not; each is kept when it ends.

    Args:
        file: of the runs.
        plan: their settings, in the order in which they are wanted.
        work: settings → result; a module's function, since it may run in another process.
        jobs: processes.
        minutes: no run is begun after so many.

    Returns:
        How many of the plan are still missing.
    """
    known = read(file)
    missing = [settings for settings in plan if key_of(settings) not in known]
    print(f"{len(plan) - len(missing)} of {len(plan)} runs are there", flush=True)
    began = time.monotonic()
    left = iter(missing) if minutes is None else _until(missing, began + 60 * minutes)
    done = 0
    for settings, result in _results(left, work, jobs):
        append(file, settings, result)
        done += 1
        each = (time.monotonic() - began) / done
        told = " ".join(str(value) for name, value in settings.items() if name not in ("study", "base", "identity"))
        there, more = len(plan) - len(missing) + done, each * (len(missing) - done) / 60
        print(f"[{there}/{len(plan)}, {more:.0f} min left] {told}", flush=True)
    return len(missing) - done


def _results(left: Iterator[Settings], work: Work, jobs: int) -> Iterator[tuple[Settings, dict[str, Any]]]:
    if jobs == 1:
        _one_thread()
        for settings in left:
            yield settings, work(settings)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_one_thread) as pool:
        yield from pool.imap_unordered(partial(_told, work), left)


def _told(work: Work, settings: Settings) -> tuple[Settings, dict[str, Any]]:
    return settings, work(settings)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _until(missing: Sequence[Settings], end: float) -> Iterator[Settings]:
    for settings in missing:
        if time.monotonic() > end:
            return
        yield settings
