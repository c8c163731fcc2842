"""Interleaved timing: every candidate once per round, in a changing order, so that load hits all alike."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

import torch

__all__ = ["environment", "interleaved", "table"]


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, seed: int = 0, cpu_time: bool = False
) -> dict[str, float]:
    """Name → median seconds of a call, after one round that does not count.

    With `cpu_time` the seconds are those that the process computed, which other programs on a machine hardly change.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    order, taken = random.Random(seed), {name: list[float]() for name in candidates}
    for number in range(rounds + 1):
        for name in order.sample(sorted(candidates), len(candidates)):
            start = clock()
            candidates[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def environment() -> str:
    """Hardware and versions, one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "peft-reft"))
    return f"{device}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {packages}"


def table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table; numbers with three digits after the point."""
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [header, tuple("---" for _ in header), *map(tuple, shown)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
