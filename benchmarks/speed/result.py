"""A run's result: JSON that a later run is compared with, and the same as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.speed.cases import CASES, COMPILED, Case
from benchmarks.speed.methods import ENVIRONMENTS, METHODS
from benchmarks.speed.pairing import Summary, summarise
from benchmarks.speed.rounds import Kept, Plan
from benchmarks.speed.work import FLOORS

__all__ = ["TITLES", "case_table", "floors", "markdown", "result", "sizes", "summaries", "versions", "write"]

KNOWN = {**CASES, **COMPILED}
TITLES = {"ours": "ours", "lora": "LoRA", "pyreft": "pyreft", "adapters": "adapters"}


def result(plan: Plan, kept: Kept) -> dict[str, Any]:
    """All that was measured of the plan; JSON."""
    cases: dict[str, Any] = {}
    for name in plan.cases:
        entries: dict[str, Any] = {}
        for method in plan.methods:
            pairs = kept.pairs.get((name, method), {})
            taken = [pair for number, pair in sorted(pairs.items()) if number < plan.rounds]
            if taken:
                entries[method] = asdict(summarise(taken))
            elif (name, method) in kept.failed:
                entries[method] = {"failed": kept.failed[name, method]}
        cases[name] = {"settings": KNOWN[name].settings(), "target": KNOWN[name].target, "methods": entries}
    facts_failed = {f"{part}, {method}": why for (part, method), why in kept.failed.items() if part not in KNOWN}
    return {
        "device": plan.device,
        "dtype": "float32" if plan.device == "cpu" else "bfloat16",
        "rounds": plan.rounds,
        "sittings": plan.sittings,
        "about": kept.about,
        "absent": plan.absent(),
        "cases": cases,
        "facts case": plan.facts_case,
        "facts": kept.facts,
        "facts failed": facts_failed,
    }


def summaries(told: dict[str, Any], method: str) -> dict[str, Summary]:
    """Case → summary, of a method in a result read from JSON; cases that failed are left out."""
    found = {name: case["methods"].get(method, {}) for name, case in told["cases"].items()}
    return {name: Summary(**entry) for name, entry in found.items() if "median" in entry}


def markdown(told: dict[str, Any], command: str) -> str:
    """The result for people."""
    methods = [method for method in METHODS if method not in told["absent"]]
    methods = [method for method in methods if any(method in case["methods"] for case in told["cases"].values())]
    clock = "computing time of one thread" if told["device"] == "cpu" else "synchronised wall time"
    parts = [
        "# What ReFT costs beside a frozen base and beside others",
        f"`{command}`: medians of paired ratios (rounds: {told['rounds']}, sittings of fresh processes: "
        f"{told['sittings']}), {clock}, {told['dtype']}; in brackets the lowest and the highest. In a round every "
        "method is timed between two runs of its floor, in its own process and environment. `target` is what ours "
        "shall cost at most.",
        versions(told),
        case_table(told, methods),
        _notes(told),
        f"## Once a method, on the model of {told['facts case']}",
        _facts(told, methods),
        "Attach, load and a further adapter are medians or means over several, after one that warms the code; the "
        "first step is the first of a process, behind loading. `of the floor` is the same figure of the frozen base "
        "in a fresh process of the same environment; the peak is the process's, its libraries included. Calls of ATen "
        "are those beyond the floor's, counted on a Llama of 64 with 2 and 4 blocks, batch 4 × 24 without padding; a "
        "step is forward and backward without the optimiser, and `once` is below zero where the method's backward "
        "ends before the floor's does. Bytes are those of the whole folder, as its library writes it.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def versions(told: dict[str, Any]) -> str:
    """A line for each process's hardware and packages, and for the commit."""
    lines = []
    for name, about in sorted(told["about"].items()):
        text = about if isinstance(about, str) else ", ".join(f"{key} {value}" for key, value in about.items())
        lines.append(f"- {name}: {text}")
    return "\n".join(lines)


def case_table(told: dict[str, Any], methods: list[str]) -> str:
    """Case by case, the ratio of each method, and the floor's own time and noise."""
    rows: list[tuple[object, ...]] = []
    for name, case in told["cases"].items():
        entries = case["methods"]
        measured = [entry for entry in entries.values() if "median" in entry]
        milliseconds = [entry["floor_seconds"] * 1000 for entry in measured]
        apart = [entry["floor_noise"] for entry in measured]
        rows.append(
            (
                name,
                case["target"] or "",
                *(_cell(entries.get(method)) for method in methods),
                f"{min(milliseconds):.1f}" if measured else "",
                f"{max(apart):.1%}" if measured else "",
            )
        )
    return table(("case", "target", *(TITLES[method] for method in methods), "floor, ms", "floor / floor"), rows)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not measured"
    if "failed" in entry:
        return "fails"
    rounds = f"; rounds: {entry['rounds']}" if entry["rounds"] < 3 else ""
    return f"{entry['median']:.3f} ({entry['low']:.3f}–{entry['high']:.3f}{rounds})"


def _notes(told: dict[str, Any]) -> str:
    """What the floors do, the sizes, and why a cell or a column is missing."""
    lines = [*floors(told), *(f"- {name}: {sizes(KNOWN[name])}." for name in told["cases"] if name in KNOWN)]
    lines += [
        "- A ReFT is a loreft at the first and the last 7 tokens of the prompt, tied, at the output of all blocks; a "
        "LoRA is on q and v of all blocks, rank 8 (64 where the ReFT's is), not merged. `floor / floor`: the median "
        "distance of a round's two floors from each other, the largest of the methods'."
    ]
    lines += [f"- {TITLES[method]} was left out: {reason}." for method, reason in told["absent"].items()]
    for name, case in told["cases"].items():
        lines += [
            f"- {TITLES[method]} fails at {name}: {entry['failed']}."
            for method, entry in case["methods"].items()
            if "failed" in entry
        ]
    lines += [f"- Not measured, {what}: {reason}." for what, reason in told["facts failed"].items()]
    return "\n".join(lines)


def floors(told: dict[str, Any]) -> list[str]:
    """What the floors of the measured kinds of work do."""
    settings = [case["settings"] for case in told["cases"].values()]
    used = {"loaded" if one["loaded"] > 1 else one["work"] for one in settings}
    return [f"- Floor of `{kind}`: {FLOORS[kind]}." for kind in FLOORS if kind in used]


def sizes(case: Case) -> str:
    """Of the base, the batch and the adapters."""
    shape = case.shape
    heads = "one head" if shape.heads == 1 else f"{shape.heads} heads"
    new = f", {case.new_tokens} new tokens" if case.new_tokens else ""
    many = f", {case.loaded} adapters loaded and one active" if case.loaded > 1 else ""
    return (
        f"Llama of {shape.layers} blocks of {shape.hidden}, MLP {shape.mlp}, {heads}; {case.batch} × {case.tokens} "
        f"tokens{new}, rank {case.rank}, LoRA rank {case.lora_rank}{many}"
    )


def _facts(told: dict[str, Any], methods: list[str]) -> str:
    facts = told["facts"]
    if not facts:
        return "Not measured in this run."
    names = list(dict.fromkeys(name for method in methods for name in facts.get(method, {})))
    rows: list[tuple[object, ...]] = []
    for name in names:
        rows.append((name, *(_number(facts.get(method, {}).get(name)) for method in methods)))
        own = [_number(facts.get(f"floor, {ENVIRONMENTS[method]}", {}).get(name)) for method in methods]
        if any(own):
            rows.append((f"{name}, of the floor", *own))
    return table(("", *(TITLES[method] for method in methods)), rows)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def write(told: dict[str, Any], stem: Path, command: str) -> None:
    """`stem`.json and `stem`.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(told, command), encoding="utf-8")
