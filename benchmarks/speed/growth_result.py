"""A run's growth: points, slopes and what they say, as JSON and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.speed.axes import AXES, BASE, POINTS
from benchmarks.speed.pairing import Pair, summarise, wander
from benchmarks.speed.result import TITLES, versions
from benchmarks.speed.rounds import Kept, Plan
from benchmarks.speed.slopes import slope

__all__ = ["MANY", "growth_markdown", "growth_result", "write_growth"]

MANY = ("32 rows over 512 adapters", "ours")
"""Where `Kept` has the rounds of `benchmarks.many_adapters`."""
LAST = 4
"""Points of an axis's end, which have a slope of their own: what is the same for all sizes counts less there."""
NOTES = {
    "adapters per batch": "from one adapter to several is a step, not a slope: rows that name their adapters are "
    "edited by products batched by row, each with its own R, and in evaluation in float64, so that a row has the "
    "bits that it has alone. How many adapters they name then costs nothing more",
    "generated tokens": "a step of decoding edits nothing, but it opens one frame, and every edited block's hook "
    "makes one test; no tensor is touched. A module with a hook also takes torch's longer way through its call. That "
    "is the same for every step, so that it grows with them as the base's own work does",
    "rank, training": "R's orthonormal rows are computed and differentiated anew in every step: beside terms in rank "
    "this has some in rank², for the rows' products with one another, which the number of tokens does not enter",
    "sequence length, training": "going back, the gradient of a block's output is copied whole, since others may hold "
    "it, and the edited rows are written into the copy. The labels and the mask of all tokens are looked at once a "
    "step; and the more the base moves through the caches, the colder the edits find them",
}
"""Axis → what the code does along it that edited tokens × layers × rank × hidden size does not say."""


def growth_result(plan: Plan, kept: Kept, axes: Sequence[str]) -> dict[str, Any]:
    """All that was measured of the plan; JSON."""
    many = [pair for number, pair in sorted(kept.pairs.get(MANY, {}).items()) if number < plan.rounds]
    return {
        "device": plan.device,
        "rounds": plan.rounds,
        "sittings": plan.sittings,
        "about": kept.about,
        "axes": {name: {method: _along(plan, kept, name, method) for method in plan.methods} for name in axes},
        "many": asdict(summarise(many)) if many else None,
    }


def _along(plan: Plan, kept: Kept, name: str, method: str) -> dict[str, Any]:
    axis, points = AXES[name], {}
    for value in axis.values:
        point = axis.point(value)
        pairs = kept.pairs.get((point, method), {})
        taken = [pair for number, pair in sorted(pairs.items()) if number < plan.rounds]
        if point in plan.cases and taken:
            points[str(value)] = {"settings": POINTS[point].settings(), **asdict(summarise(taken)), "own": own(taken)}
        else:
            points[str(value)] = {"missing": kept.failed.get((point, method), "left out of this run")}
    used = {int(value): one["own"] for value, one in points.items() if _has_error(one)}
    last = dict(list(used.items())[-LAST:]) if len(used) > LAST else {}
    slopes = {"all": _slope(used), "last": _slope(last)}
    return {"unit": axis.unit, "must": axis.must, "work": axis.work, "points": points, "slopes": slopes}


def own(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Milliseconds beyond the floor's: median, lowest, highest, and three standard errors of the median."""
    costs = [pair.own * 1000 for pair in pairs]
    return {"median": statistics.median(costs), "low": min(costs), "high": max(costs), "noise": wander(costs)}


def _is_sure(point: dict[str, Any]) -> bool:
    """Whether the own cost is told from nothing."""
    return bool(point["own"]["median"] > (point["own"]["noise"] or 0))


def _has_error(point: dict[str, Any]) -> bool:
    return bool("own" in point and point["own"]["noise"])


def _slope(costs: dict[int, dict[str, float]]) -> dict[str, Any] | None:
    medians = [cost["median"] for cost in costs.values()]
    found = slope(list(costs), medians, [cost["noise"] / 3 for cost in costs.values()])
    return None if found is None else asdict(found)


def write_growth(told: dict[str, Any], stem: Path, command: str) -> None:
    """`stem`.json and `stem`.md; the figure is `benchmarks.speed.growth_figure`'s."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(growth_markdown(told, command, stem.name), encoding="utf-8")


def growth_markdown(told: dict[str, Any], command: str, stem: str) -> str:
    """The result for people."""
    clock = "computing time of one thread" if told["device"] == "cpu" else "synchronised wall time"
    parts = [
        "# How the cost of an edit grows",
        f"`{command}`: {clock}, rounds: {told['rounds']}, sittings of fresh processes: {told['sittings']}. In a round "
        "a method is timed between two runs of the frozen base on the same batch: `ratio` is the median of the "
        "rounds' ratios (lowest–highest), `own` the median of what a call takes beyond the base's, with three "
        "standard errors of that median.",
        versions(told),
        f"![own cost along each size]({stem}.svg)",
        "## Slopes",
        table(("along", "must", "own cost grows by", f"over the last {LAST} points", "verdict"), _slopes(told)),
        _reading(),
        _explained(told),
        _many(told),
        "## Points",
        *(f"### {_title(name, method)}\n\n{_points(along)}" for name, method, along in _each(told)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _reading() -> str:
    return f"""\
The base is a Llama of {BASE.layers} blocks of {BASE.hidden} with an MLP of {BASE.mlp}: nearly no work but attention, \
so that the own cost stands out; on a usual base the ratios are lower. Rows have no padding; a ReFT is a loreft at \
the first and the last 7 tokens, tied, in all blocks. A training step is forward, loss, backward and AdamW; its \
floor's backward ends behind the first block, where a ReFT's ends too. One size changes, the others stay as in the \
points' `settings` (JSON).

`must` is the exponent of edited tokens × layers × rank × hidden size along the axis. A slope is the exponent \
e of own cost ∝ sizeᵉ by least squares, points weighted by their noise, with its 95 % interval: the wider of \
Student's t from the points' distances to the curve, which bends widen, and the normal one from their noise; empty \
where the points do not say. `(noise)` marks a point whose own cost is not told from nothing. Below `must` is the \
rule where a part of the cost is the same for every size (the calls themselves). \
`faster` stands where an interval lies above `must` as a whole."""


def _each(told: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, method, along) for name, by in told["axes"].items() for method, along in by.items()]


def _title(name: str, method: str) -> str:
    return name if method == "ours" else f"{name}, {TITLES[method]}"


def _slopes(told: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            _title(name, method),
            str(along["must"]),
            *(_exponent(along["slopes"][part]) for part in ("all", "last")),
            "faster" if _faster(along) else "",
        )
        for name, method, along in _each(told)
    ]


def _exponent(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['exponent']:.2f} ({found['low']:.2f}–{found['high']:.2f}; {found['points']} points)"


def _faster(along: dict[str, Any]) -> bool:
    return any(found is not None and found["low"] > along["must"] for found in along["slopes"].values())


def _explained(told: dict[str, Any]) -> str:
    """The notes, and, for each axis along which ours grows faster than it must, that it does."""
    lines = []
    for name, method, along in _each(told):
        fast = method == "ours" and _faster(along)
        note = NOTES.get(name, "not explained yet" if fast else "")
        if method == "ours" and note:
            lines.append(f"- {name}{' (grows faster than it must)' if fast else ''}: {note}.")
    return "\n".join(lines)


def _many(told: dict[str, Any]) -> str:
    many = told["many"]
    if many is None:
        return ""
    text = f"{many['median']:.3f} ({many['low']:.3f}–{many['high']:.3f}; rounds: {many['rounds']})"
    return "\n\n".join(
        (
            "## Many adapters on a real model",
            "A prefill of `benchmarks.many_adapters` in its usual sizes on SmolLM2-135M-Instruct, every row with an "
            "adapter of its own, between two with one adapter for all rows, on the same model.",
            table(
                ("", "own adapters / one adapter", "one, ms", "one / one"),
                [(MANY[0], text, f"{many['floor_seconds'] * 1000:.0f}", f"{many['floor_noise']:.1%}")],
            ),
        )
    )


def _points(along: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    for value, one in along["points"].items():
        if "missing" in one:
            rows.append((value, one["missing"], "", "", ""))
            continue
        noise = "" if one["own"]["noise"] is None else f" ± {one['own']['noise']:.2f}"
        ratio = f"{one['median']:.3f} ({one['low']:.3f}–{one['high']:.3f})"
        cost = f"{one['own']['median']:.2f}{noise}{'' if _is_sure(one) else ' (noise)'}"
        rows.append((value, ratio, cost, f"{one['floor_seconds'] * 1000:.1f}", f"{one['floor_noise']:.1%}"))
    return table((along["unit"], "ratio", "own, ms", "base, ms", "base / base"), rows)
