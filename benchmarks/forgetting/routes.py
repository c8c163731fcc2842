"""What a router and a sum make of adapters that learnt one skill each, and what asking them costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from benchmarks.study.runs import results_of
from benchmarks.study.statistics import bootstrap

__all__ = ["routes"]


def routes(runs: Iterable[Mapping[str, Any]]) -> str:
    """A row for each method whose adapters were switched; empty where none were. Runs are of one base and series."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for settings, result in results_of(list(runs), study="forgetting", regime="switched"):
        found.setdefault(settings["method"], []).append(result)
    if not found:
        return ""
    rows = [
        "| method | parameters kept | sent to the right adapter | prefills before an answer | seconds a question | "
        "weights of the sum |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for method, held in found.items():
        mean, low, high = bootstrap([one["routed"]["router"] for one in held])
        right = f"{mean:.3f}" if low != low else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        seconds = median(one["routed"]["seconds"] for one in held)
        prefills = held[0]["routed"]["prefills"]
        rows.append(
            f"| {method} | {sum(held[0]['parameters']):,} | {right} | {prefills} | {seconds:.3f} | {_weights(held)} |"
        )
    return "\n".join(
        [
            *rows,
            "",
            "*parameters kept*: of all adapters together. *Seconds*: the router's own forward, a median over runs on "
            "a machine that had other work to do. *Weights*: mean over blocks of what `merge_skills` chose for the "
            "first to the last skill, of equal shares, 0, 0.5 and 1.",
        ]
    )


def _weights(held: Iterable[Mapping[str, Any]]) -> str:
    chosen = [one["merged"]["weights"] for one in held if "merged" in one]
    return ", ".join(f"{sum(place) / len(place):.2f}" for place in zip(*chosen, strict=True))
