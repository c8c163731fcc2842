"""Where a table comes from: settings, seeds, learning rates, hardware and versions of the runs that it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["provenance"]


def provenance(runs: Iterable[Mapping[str, Any]]) -> str:
    """A list of what the runs have in common and of what differs among them.

    Args:
        runs: of one study on one base.
    """
    held = list(runs)
    settings = [run["settings"] for run in held]
    rates = sorted({(one["method"], one["rate"]) for one in settings})
    seconds = sum(_seconds(run["result"]["seconds"]) for run in held)
    lines = [
        f"- {len(held)} runs; learning alone took {seconds / 60:.0f} minutes of processor time",
        f"- steps of a skill {_all(settings, 'steps')}, examples of a step {_all(settings, 'batch')}, in train, "
        f"validation, held-out {_all(settings, 'sizes')}, seeds {_all(settings, 'seed')}",
        f"- learning rates: {'; '.join(f'{method} {rate:g}' for method, rate in rates)}",
    ]
    sizes = sorted({(run["settings"]["method"], _first(run["result"]["parameters"])) for run in held})
    lines.append(f"- parameters trained: {'; '.join(f'{method} {count:,}' for method, count in sizes)}")
    orders = dict.fromkeys(tuple(one["order"]) for one in settings if "order" in one)
    if orders:
        lines.append(f"- orders: {'; '.join(', '.join(order) for order in orders)}")
    machines = [run.get("machine", {}) for run in held]
    for name in sorted({name for machine in machines for name in machine}):
        lines.append(f"- {name}: {_all(machines, name)}")
    return "\n".join(lines)


def _all(held: Iterable[Mapping[str, Any]], name: str) -> str:
    return " / ".join(dict.fromkeys(_shown(one[name]) for one in held if name in one))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _seconds(value: Any) -> float:
    return float(sum(value) if isinstance(value, list) else value)
