"""A run's result: JSON, and the same as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.speed.pairing import summarise
from benchmarks.speed.result import versions

from .adapters import FOLDERS, MEANING
from .engines import BATCH, SETTINGS, SLOTS
from .rounds import DECODES, NARROW, SHARE, Plan, Served, case_of
from .simulated import simulated

__all__ = ["markdown", "result", "write"]

TITLES = {"base": "base", "ours": "ours", "lora": "LoRA, all linear", "lora_qv": "LoRA, q,v"}
FIGURES = ("per_second", "first", "first_high", "each")


def result(plan: Plan, kept: Served) -> dict[str, Any]:
    """All that was measured of the plan; JSON."""
    return {
        "device": plan.device,
        "about": kept.about,
        "base": Path(plan.base).name,
        "load": asdict(plan.load),
        "says": str(plan.load),
        "rate": kept.rate,
        "rounds": plan.rounds,
        "counts": list(plan.counts),
        "cases": {
            arrival: {
                str(count): {kind: _served(plan, kept, case_of(arrival, count), kind) for kind in plan.kinds_of(count)}
                for count in plan.counts
            }
            for arrival in plan.arrivals
        },
        "alone": statistics.median(kept.alone) if kept.alone else None,
        "decode": {
            case: {
                kind: asdict(summarise([pair for _, pair in sorted(kept.pairs[case, kind].items())]))
                for kind in plan.kinds
                if (case, kind) in kept.pairs
            }
            for case in DECODES
        },
    }


def _served(plan: Plan, kept: Served, case: str, kind: str) -> dict[str, Any]:
    """Medians of the rounds, ratios to the base's of the same round, and how many answers differ from the base's."""
    mine, floor = (
        {number: told for number, told in sorted(kept.told.get((case, who), {}).items()) if number < plan.rounds}
        for who in (kind, "base")
    )
    if not mine:
        return {}
    found: dict[str, Any] = {name: statistics.median(told[name] for told in mine.values()) for name in FIGURES}
    both = [number for number in mine if number in floor]
    for name in FIGURES:
        found[f"{name}, of base"] = [mine[number][name] / floor[number][name] for number in both]
    pairs = [pair for n in both for pair in zip(mine[n]["answers"], floor[n]["answers"], strict=True)]
    return {**found, "rounds": len(mine), "other answers": sum(a != b for a, b in pairs) / max(1, len(pairs))}


def write(told: dict[str, Any], stem: Path, command: str) -> None:
    """`stem`.json and `stem`.md; the figure is `figure.draw`'s."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(told, command, stem.name), encoding="utf-8")


def markdown(told: dict[str, Any], command: str, stem: str) -> str:
    """The result for people."""
    clock = "computing time of the engine's one thread" if told["device"] == "cpu" else "wall time"
    parts = [
        "# Many adapters on vLLM: ReFT beside multi-LoRA",
        f"`{command}`: {clock}; rounds: {told['rounds']}, or as many as the tables say. In a round every engine "
        "serves the same requests, one after the other, in an order that turns around from round to round; ratios "
        "are of one round, in brackets the lowest and the highest of them. Engines are processes that stay for the "
        "whole run.",
        versions(told),
        f"![requests a second, first token, each token]({stem}.svg)",
        *(_arrival(told, arrival) for arrival in told["cases"]),
        "## Steps that only decode",
        _decodes(told),
        *filter(None, [simulated(told)]),
        "## What was run",
        _notes(told),
    ]
    return "\n\n".join(parts) + "\n"


def _arrival(told: dict[str, Any], arrival: str) -> str:
    """The table of one way to arrive."""
    how = "all at once" if arrival == "burst" else f"{told['rate']} a second on average, with exponential gaps"
    head = ("adapters", "engine", "requests/s", "of the base's", "ours ÷ this", "first token, s")
    head = (*head, "its 95th percentile", "each token, ms", "of the base's", "rounds")
    rows: list[tuple[object, ...]] = []
    for count, kinds in told["cases"][arrival].items():
        for kind, one in kinds.items():
            if one:
                rows.append((count, TITLES[kind], *_cells(one, kinds.get("ours", {}), kind)))
    return f"## {arrival.capitalize()}: {how}\n\n{table(head, rows)}"


def _cells(one: dict[str, Any], ours: dict[str, Any], kind: str) -> Sequence[str]:
    beside = ""
    if kind not in ("base", "ours") and ours:
        mine, theirs = ours["per_second, of base"], one["per_second, of base"]
        beside = _spread([a / b for a, b in zip(mine, theirs, strict=False)])
    floor: Callable[[str], str] = lambda name: "" if kind == "base" else _spread(one[f"{name}, of base"])  # noqa: E731
    return (
        f"{one['per_second']:.2f}",
        floor("per_second"),
        beside,
        f"{one['first']:.2f}",
        f"{one['first_high']:.2f}",
        f"{one['each'] * 1000:.0f}",
        floor("each"),
        str(one["rounds"]),
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})" if values else ""


def _decodes(told: dict[str, Any]) -> str:
    head = (
        "engines",
        "adapters",
        "step ÷ the base's",
        "lowest–highest",
        "3 standard errors",
        "base / base",
        "base, ms",
    )
    rows: list[tuple[object, ...]] = []
    for case, kinds in told["decode"].items():
        for kind, one in kinds.items():
            mode, step = "compiled" if DECODES[case] else "eager", f"{one['median']:.4f}"
            noise = "" if one["noise"] is None else f"{one['noise']:.4f}"
            apart, floor = f"{one['floor_noise']:.2%}", f"{one['floor_seconds'] * 1000:.1f}"
            rows.append((mode, TITLES[kind], step, f"{one['low']:.3f}–{one['high']:.3f}", noise, apart, floor))
    rounds = max((one["rounds"] for kinds in told["decode"].values() for one in kinds.values()), default=0)
    if not rows:
        return "Not measured in this run."
    return (
        f"{BATCH} requests, {NARROW} adapters to choose among; the same two steps of the base, of the engine and of "
        f"the base again, {rounds} times. `base / base`: the median distance of the two. `lowest–highest` are of "
        f"single pairs.\n\n{table(head, rows)}"
    )


def _notes(told: dict[str, Any]) -> str:
    other = {
        kind: one["other answers"]
        for kinds in told["cases"].get("burst", {}).values()
        for kind, one in kinds.items()
        if one and kind != "base"
    }
    shown = ", ".join(f"{TITLES[kind]} {share:.0%}" for kind, share in other.items())
    apart = ", but for the compiled steps above" if told["decode"].get("decode, compiled") else ""
    lines = [
        f"- Base: {told['base']}, {SETTINGS['dtype']}; {told['says']}, random tokens, greedy, no end token. "
        f"Prefix caching is off. A step takes {BATCH} requests and {SETTINGS['max_num_batched_tokens']} tokens.",
        *(f"- {TITLES[kind]}: {meaning}." for kind, meaning in MEANING.items()),
        f"- `max_loras` = `max_refts` = {SLOTS}: so many adapters are on the device at once, and in a step; on a CPU "
        "vLLM limits it by nothing but memory. All adapters are loaded beforehand (`max_cpu_loras` as many as "
        "there are), and `lora_target_modules` names the projections that have one, so that vLLM multiplies by no "
        f"zeros. The names of a kind share {FOLDERS} folders, which no engine can know.",
        "- Requests for n adapters name as many different ones as they are.",
        f"- The Poisson rate is {SHARE:.0%} of what the base answers in a burst.",
        f"- Answers that are not the base's, by which one sees that adapters are at work: {shown}.",
        f"- With LoRAs vLLM compiles nothing on a CPU, so all engines are eager{apart}. Its "
        "LoRA kernels for CPUs are written in torch: they gather A and B once for every token, also in a prompt. "
        "On a GPU its kernels read them once for the rows that share them, so that prompts cost less there than here; "
        "what a decoding step reads is the same where every row has another adapter.",
    ]
    return "\n".join(lines)
