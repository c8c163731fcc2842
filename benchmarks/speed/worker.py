"""A process that measures in its environment: reads one JSON message a line, answers each with one line.

`{"do": "about"}`, `{"do": "make", "case": …, "methods": […]}`, then as often as wanted
`{"do": "time", "method": …, "which": "floor" or "method"}`. An error of a method is an answer, `{"error": …}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.about import of_this_process
from benchmarks.speed.axes import POINTS
from benchmarks.speed.cases import CASES, COMPILED, Case
from benchmarks.speed.work import Work, floor_work, method_work, seconds_of

__all__ = ["Bench", "answer_all", "main"]

KNOWN = {**CASES, **COMPILED, **POINTS}
"""The cases of all commands."""


class Bench:
    """One case at a time: the methods of this environment and the floors beside them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.case: Case | None = None
        self.floors: dict[str, Work] = {}
        self.works: dict[str, Work] = {}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What `message` asks for; see the module."""
        verbs: dict[str, Callable[..., dict[str, Any]]]
        verbs = {"about": self._about, "make": self._make, "time": self._time}
        return verbs[message.pop("do")](**message)

    def _about(self) -> dict[str, Any]:
        return of_this_process(self.device)

    def _make(self, case: str, methods: list[str]) -> dict[str, Any]:
        """Models of the case, each called twice before anything is timed; those of the last case go."""
        self.floors.clear()
        self.works.clear()
        self.case = made = KNOWN[case]
        if made.compiled is not None:
            # no graph of another case's sizes, and no silent return to eager mode
            torch._dynamo.reset()
            torch._dynamo.config.fail_on_recompile_limit_hit = True
        failed = {}
        shared = floor_work(made, self.device) if made.loaded == 1 or made.own_cost else None
        for method in methods:
            try:
                self.works[method] = method_work(method, made, self.device)
                self.floors[method] = shared or method_work(method, made, self.device, loaded=1)
                for work in (self.works[method], self.floors[method]) * 2:
                    work()
            except Exception as error:
                traceback.print_exc()
                self.works.pop(method, None)
                failed[method] = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"failed": failed}

    def _time(self, method: str, which: str) -> dict[str, Any]:
        assert self.case is not None
        work = (self.floors if which == "floor" else self.works)[method]
        return {"seconds": seconds_of(work, self.case.calls, self.device)}


def main() -> None:
    """Answer until the input ends."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    if given.device == "cpu":
        torch.set_num_threads(1)
    answer_all(Bench(given.device).answer)


def answer_all(answered: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer every line of the input with one; an error is an answer too."""
    # libraries print where they like: the answers keep a channel of their own
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            answer = answered(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
