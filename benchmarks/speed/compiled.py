"""`python -m benchmarks.speed.compiled`: steps, prefills and static-cache decoding, each beside the compiled base."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.speed.cases import COMPILED
from benchmarks.speed.graphs import BLOCKS, counted
from benchmarks.speed.methods import ENVIRONMENTS, METHODS
from benchmarks.speed.options import RESULTS, add_places, chosen, command_line, opened, resumable
from benchmarks.speed.result import TITLES, case_table, floors, result, sizes, versions
from benchmarks.speed.rounds import Kept, Plan, measure

__all__ = ["compiled_markdown", "compiled_result", "count", "main"]

OWN = tuple(name for name in METHODS if ENVIRONMENTS[name] == "own")


def main() -> None:
    """Measure and count what is missing, write the result, print it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", default="; ".join(COMPILED), help=f"of {'; '.join(COMPILED)}; semicolons between")
    options.add_argument("--methods", default=",".join(OWN), help=f"of {', '.join(OWN)}; with commas between")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: bf16 base, wall time")
    add_places(options)
    given = options.parse_args()
    cases = chosen(given.cases, COMPILED, ";")
    plan = Plan(cases, chosen(given.methods, OWN), given.rounds, 1, given.device)
    name = "compiled" if given.device == "cpu" else f"compiled-{given.device}"
    kept = opened(given, name)
    with resumable(kept):
        measure(plan, kept)
    count(plan, kept)
    told, command = compiled_result(plan, kept), command_line("benchmarks.speed.compiled")
    text, stem = compiled_markdown(told, command), given.output or RESULTS / name
    _write(stem, told, text)
    print(text)


def count(plan: Plan, kept: Kept) -> None:
    """The graphs of every method and of the base in every case, where they are not there yet; in this process."""
    for case in plan.cases:
        for method in ("floor", *plan.methods):
            if _key(case, method) in kept.facts:
                continue
            try:
                kept.add(
                    {"case": case, "method": _key(case, method), "facts": counted(method, COMPILED[case], plan.device)}
                )
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                kept.add({"case": "graphs", "method": _key(case, method), "failed": reason})
            print(f"graphs of {_key(case, method)}: {kept.facts.get(_key(case, method), 'failed')}", flush=True)


def _key(case: str, method: str) -> str:
    return f"{method} at {case}"


def compiled_result(plan: Plan, kept: Kept) -> dict[str, Any]:
    """All that was measured and counted of the plan; JSON."""
    told = {key: value for key, value in result(plan, kept).items() if key not in ("facts", "facts case")}
    methods = ("floor", *plan.methods)
    graphs = {case: {method: kept.facts.get(_key(case, method)) for method in methods} for case in plan.cases}
    return {**told, "methods": list(plan.methods), "graphs": graphs}


def compiled_markdown(told: dict[str, Any], command: str) -> str:
    """The result for people."""
    clock = "computing time of one thread" if told["device"] == "cpu" else "synchronised wall time"
    failed = [f"- Not counted, {what}: {why}." for what, why in told["facts failed"].items()]
    failed += [
        f"- {TITLES[method]} fails at {name}: {entry['failed']}."
        for name, case in told["cases"].items()
        for method, entry in case["methods"].items()
        if "failed" in entry
    ]
    lines = [*floors(told), *(f"- {name}: {sizes(COMPILED[name])}." for name in told["cases"])]
    parts = [
        "# Compiled: beside the compiled frozen base",
        f"`{command}`: medians of paired ratios (rounds: {told['rounds']}), {clock}, {told['dtype']}; in brackets the "
        "lowest and the highest. The base is compiled in place (`base.compile()`, inductor) inside what a method puts "
        "around it, and so is the floor; a generation decodes with a static cache and transformers' compiled step. "
        "The optimiser's step is not compiled.",
        versions(told),
        case_table(told, told["methods"]),
        "\n".join(lines + failed),
        "## Graphs",
        table(("case", "", "graphs", "at other lengths", "at another adapter", "breaks"), _graph_rows(told)),
        f"Counted on models of {BLOCKS} blocks, where the compiler hands its graphs to a backend: those of a "
        "first call; those more at two other lengths, one after the other; those more when another adapter of the "
        "same shape becomes active and the first "
        "again; and all breaks. In brackets: beyond the base's.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _graph_rows(told: dict[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for case, by_method in told["graphs"].items():
        base = by_method["floor"]
        for method, found in by_method.items():
            title = "frozen base" if method == "floor" else TITLES[method]
            if found is None:
                rows.append((case, title, "not counted", "", "", ""))
                continue
            beyond = base if method != "floor" else None
            names = ("graphs", "further graphs, length", "further graphs, adapter", "breaks")
            rows.append((case, title, *(_beyond(found, beyond, name) for name in names)))
    return rows


def _beyond(found: dict[str, int], base: dict[str, int] | None, name: str) -> str:
    if name not in found:
        return ""
    return str(found[name]) if base is None else f"{found[name]} ({found[name] - base.get(name, 0):+d})"


def _write(stem: Path, told: dict[str, Any], text: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
