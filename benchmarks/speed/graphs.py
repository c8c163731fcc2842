"""What a method asks of the compiler, counted: graphs, breaks, and further graphs when something changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.speed.cases import Case, llama
from benchmarks.speed.methods import FIRST, METHODS
from benchmarks.speed.work import compile_base, floor_on, method_on

__all__ = ["counted"]

OTHER = "a1"
BLOCKS = 2
"""Of the counted model: a graph takes all blocks, so that a count does not hang on how many they are."""
LONGER = (16, 40)
"""Tokens beyond the case's, of the calls that follow; by torch's defaults a size is dynamic once it changed."""


def counted(method: str, case: Case, device: str) -> dict[str, int]:
    """Of one model: graphs at its first call, graphs more at other lengths, then at other adapters, breaks of all.

    `method` may be `floor`, the frozen base, which has no adapters. Graphs are counted where the
    compiler's front hands them on, so that no backend changes the figures.
    """
    torch._dynamo.reset()
    counters.clear()
    case = replace(case, compiled="eager", shape=replace(case.shape, layers=BLOCKS))
    base = llama(case.shape, device)
    model: Any = base
    if method != "floor":
        model = METHODS[method].attach(base, case)
        METHODS[method].further(model, case, OTHER)
    compile_base(base, case)

    def call(tokens: int) -> None:
        sized = replace(case, tokens=tokens)
        work = floor_on(base, sized, device) if method == "floor" else method_on(model, method, sized, device)
        work()

    call(case.tokens)
    told = {"graphs": _graphs()}
    for more in LONGER:
        call(case.tokens + more)
    told["further graphs, length"] = _graphs() - told["graphs"]
    if method != "floor":
        before = _graphs()
        for name in (OTHER, FIRST):
            model.set_adapter(name)
            call(case.tokens + LONGER[-1])
        told["further graphs, adapter"] = _graphs() - before
    told["breaks"] = sum(counters["graph_break"].values())
    torch._dynamo.reset()
    return told


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]
