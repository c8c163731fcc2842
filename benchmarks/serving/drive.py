"""Requests through an engine, on a clock that stands still while nobody waits for an answer."""

from __future__ import annotations

import statistics
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .load import Asked

__all__ = ["Clock", "drive", "fill"]


@dataclass
class Clock:
    """Seconds of work since it was made, and those that were skipped because there was none.

    Attributes:
        source: `time.process_time` on a CPU, where the engine is one process on one thread and other programs take
            time from it; else `time.perf_counter`.
    """

    source: Callable[[], float]
    skipped: float = 0.0

    def __post_init__(self) -> None:
        self._start = self.source()

    def now(self) -> float:
        """Seconds since the start."""
        return self.source() - self._start + self.skipped

    def skip_to(self, moment: float) -> None:
        """Go on at a later moment."""
        self.skipped += max(0.0, moment - self.now())


@dataclass
class _Told:
    arrived: float
    first: float | None = None
    last: float = 0.0
    tokens: tuple[int, ...] = ()


def drive(engine: Any, asked: Sequence[Asked], new: int, source: Callable[[], float] = time.process_time) -> Any:
    """Send requests as they arrive, step until all are answered.

    Returns:
        `per_second` requests, `first` and `each`: median seconds to a first token, and for each token after it,
        `first_high`: the 95th percentile, `answers`: a number for each request's tokens.
    """
    waiting, told, clock = deque(enumerate(asked)), dict[str, _Told](), Clock(source)
    while waiting or engine.core.has_unfinished_requests():
        while waiting and waiting[0][1].at <= clock.now():
            number, one = waiting.popleft()
            told[str(number)] = _Told(one.at)
            engine.add(str(number), one.prompt, one.adapter, new)
        if not engine.core.has_unfinished_requests():
            clock.skip_to(waiting[0][1].at)
            continue
        outputs = engine.core.step()
        now = clock.now()
        for output in outputs:
            mine = told[output.request_id]
            mine.last, mine.tokens = now, tuple(output.outputs[0].token_ids)
            mine.first = now if mine.first is None else mine.first
    return _summary(list(told.values()), new)


def _summary(told: Sequence[_Told], new: int) -> dict[str, Any]:
    if any(one.first is None or len(one.tokens) != new for one in told):
        raise RuntimeError("a request was not answered in full")
    waits = sorted((one.first or 0.0) - one.arrived for one in told)
    each = [(one.last - (one.first or 0.0)) / (new - 1) for one in told]
    return {
        "per_second": len(told) / max(one.last for one in told),
        "first": statistics.median(waits),
        "first_high": waits[min(len(waits) - 1, round(0.95 * len(waits)))],
        "each": statistics.median(each),
        "answers": [zlib.crc32(repr(one.tokens).encode()) for one in told],
    }


def fill(engine: Any, asked: Sequence[Asked], new: int) -> None:
    """Start requests and step until every one of them decodes; there are no more than a step takes."""
    for number, one in enumerate(asked):
        engine.add(str(number), one.prompt, one.adapter, new)
    begun: set[str] = set()
    while len(begun) < len(asked):
        begun |= {output.request_id for output in engine.core.step()}
    engine.core.step()
