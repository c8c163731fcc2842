"""What is measured once a method, each part in a fresh process: disk, load, attach, memory, first step, ATen calls.

`python -m benchmarks.speed.facts METHOD PART --folder DIR` prints one line of JSON. The parts: `keep` (attach, save
into the folder, load), `further` (each adapter more), `step` (first step after loading from the folder, peak memory;
with METHOD `floor`, the base's own), `calls` (calls of ATen beyond the floor's).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import pathlib
import resource
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.cases import CASES, FACTS_CASE, Case, Shape, llama
from benchmarks.speed.methods import METHODS
from benchmarks.speed.work import floor_work, method_work, seconds_of

__all__ = ["PARTS", "main"]

FURTHER = 16
"""Adapters more, over which the memory and the time of one are averaged."""
REPEATS = 3
MIB = 2**20


def keep(method: str, case: Case, folder: str, device: str) -> dict[str, float]:
    """Bytes of the saved folder, and medians of attaching and loading; the code was warmed on a tiny model."""
    how = METHODS[method]
    tiny, small = CASES["tiny train"], str(pathlib.Path(folder, "tiny"))
    how.save(how.attach(llama(tiny.shape, device), tiny), small)
    how.load(llama(tiny.shape, device), small)
    base, saved = llama(case.shape, device), str(pathlib.Path(folder, "saved"))
    model = how.attach(copy.deepcopy(base), case)
    how.save(model, saved)
    del model
    size = sum(file.stat().st_size for file in pathlib.Path(saved).rglob("*") if file.is_file())
    attach = _median(lambda fresh: how.attach(fresh, case), base, device)
    load = _median(lambda fresh: how.load(fresh, saved), base, device)
    return {"bytes on disk": float(size), "attach, seconds": attach, "load, seconds": load}


def further(method: str, case: Case, folder: str, device: str) -> dict[str, float]:
    """Memory and time of each adapter beyond the first."""
    how = METHODS[method]
    model = how.attach(llama(case.shape, device), case)
    kept = [how.further(model, case, "warm")]
    gc.collect()
    before = _memory(device)
    seconds = seconds_of(lambda: kept.append(how.further(model, case, f"a{len(kept)}")), FURTHER, device)
    gc.collect()
    return {"further adapter, MiB": (_memory(device) - before) / FURTHER / MIB, "further adapter, seconds": seconds}


def step(method: str, case: Case, folder: str, device: str) -> dict[str, float]:
    """The first training step of a process, after loading, a later one, and the peak of memory of the process."""
    if method == "floor":
        work = floor_work(case, device)
    else:
        work = method_work(method, case, device, folder=str(pathlib.Path(folder, "saved")))
    first = seconds_of(work, 1, device)
    later = statistics.median(seconds_of(work, 1, device) for _ in range(REPEATS))
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        peak = torch.cuda.max_memory_allocated()
    return {"first step, seconds": first, "later step, seconds": later, "peak memory, MiB": peak / MIB}


def calls(method: str, case: Case, folder: str, device: str) -> dict[str, float]:
    """Beyond the floor's own, of a Llama of 64, batch 4 × 24 without padding: once a call, and per edited block."""
    told: dict[str, float] = {}
    works: tuple[tuple[Literal["forward", "train"], str], ...] = (("forward", "prefill"), ("train", "step"))
    for work, name in works:
        own = []
        for blocks in (2, 4):
            counted = Case("counted", Shape(64, blocks, 128), work, 4, 24, calls=1)
            method_calls = _counted(method_work(method, counted, device, update=False))
            own.append(method_calls - _counted(floor_work(counted, device)))
        per_block = (own[1] - own[0]) / 2
        told |= {f"calls of a {name}, once": own[0] - 2 * per_block, f"calls of a {name}, per block": per_block}
    return told


PARTS = {"keep": keep, "further": further, "step": step, "calls": calls}


class _Calls(TorchDispatchMode):
    """Counts the calls of ATen, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        return function(*args, **(kwargs or {}))


def _counted(work: Callable[[], object]) -> int:
    """Of a second call: what a first one prepares for all later ones is not counted."""
    work()
    with _Calls() as counter:
        work()
    return counter.total


def _median(act: Callable[[Any], object], base: Any, device: str) -> float:
    """Seconds of `act` on a copy of `base`, which is made outside the clock."""
    taken = []
    for _ in range(REPEATS):
        fresh = copy.deepcopy(base)
        taken.append(seconds_of(partial(act, fresh), 1, device))
        del fresh
        gc.collect()
    return statistics.median(taken)


def _memory(device: str) -> int:
    """Bytes in use now: resident ones of this process, or those allocated on the accelerator."""
    if device != "cpu":
        return torch.cuda.memory_allocated()
    return int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure one part and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("method", choices=["floor", *METHODS])
    options.add_argument("part", choices=PARTS)
    options.add_argument("--folder", required=True)
    options.add_argument("--case", choices=CASES, default=FACTS_CASE)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    if given.device == "cpu":
        torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):
        told = PARTS[given.part](given.method, CASES[given.case], given.folder, given.device)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
