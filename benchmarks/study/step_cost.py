"""What a training step of a method costs in this process: seconds, memory; and what is kept of it on a disk."""

from __future__ import annotations

import ctypes
import gc
import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .base import Base
from .learn import learn
from .measure import on_answers
from .methods import METHODS, attach, trained
from .rows import Row, batch_of

__all__ = ["step_cost"]

WARM, TIMED = 2, 10
"""Steps, and forwards of the base, that do not count; and those that do."""
MIB = 2**20


def step_cost(base: Base, method: str, rows: list[Row]) -> dict[str, float]:
    """Measure steps of the study, each on the same batch of these rows; on Linux.

    Returns:
        `forward` and `step`, processor seconds: of the frozen base, and of forward, backward, clipping and AdamW with
        the method; `peak`, MiB that steps add to what the process held before the first, beyond the code that they
        load; `parameters` that learn; `saved`, bytes on the disk.
    """
    forward = _forward(base, rows)
    _steps(attach(method, base.make, 0), base, method, rows, 1)  # a first step loads code, which is no method's cost
    model = attach(method, base.make, 0)
    before = _reset_peak()
    ticks = _steps(model, base, method, rows, WARM + TIMED)
    return {
        "forward": forward,
        "step": statistics.median(end - start for start, end in itertools.pairwise(ticks[WARM:])),
        "peak": (_peak() - before) / MIB,
        "parameters": float(sum(parameter.numel() for parameter in trained(model))),
        "saved": float(_saved(model)),
    }


@torch.no_grad()
def _forward(base: Base, rows: list[Row]) -> float:
    model, batch = base.make(torch.bfloat16), batch_of(rows, base.tokenizer.pad_token_id)
    taken = []
    for _ in range(WARM + TIMED):
        began = time.process_time()
        on_answers(model, batch)
        taken.append(time.process_time() - began)
    return statistics.median(taken[WARM:])


def _steps(model: Any, base: Base, method: str, rows: list[Row], count: int) -> list[float]:
    """The processor's clock at the start of each step, and at the end of the last."""
    ticks: list[float] = []
    learn(
        model,
        _clocked(rows, count, ticks),
        trained(model),
        rate=min(METHODS[method].rates),
        steps=count,
        pad=base.tokenizer.pad_token_id,
        factors=METHODS[method].factors,
    )
    return ticks


def _clocked(rows: list[Row], count: int, ticks: list[float]) -> Iterator[list[Row]]:
    for _ in range(count):
        ticks.append(time.process_time())
        yield rows
    ticks.append(time.process_time())


def _reset_peak() -> int:
    """Bytes that are resident now, which the peak begins from."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator holds would hide what steps take
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """The most bytes that were resident, `VmHWM` of proc(5)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no VmHWM")
    return int(found[1]) * 1024


def _saved(model: Any) -> int:
    """Of the folder that `save_pretrained` writes; where no adapter learns, of the weights that do."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder)
        else:
            kept = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
            save_file(kept, Path(folder, "model.safetensors"))
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
