"""`python -m benchmarks.speed.guard`: a few rounds of ours, compared with the committed result; fails when worse.

Exit status 1: a case is worse by more than its noise. 2: nothing is worse, but the machine was too loud to tell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.speed.about import ROOT
from benchmarks.speed.cases import CASES
from benchmarks.speed.pairing import Verdict, verdict
from benchmarks.speed.processes import WorkerError
from benchmarks.speed.result import result, summaries
from benchmarks.speed.rounds import Kept, Plan, measure

__all__ = ["compared", "main", "status"]

METHOD = "ours"


def main() -> None:
    """Measure, compare, print, and exit with a status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--against", type=Path, default=ROOT / "benchmarks" / "results" / "speed.json")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--cases", help="with commas between; those of the committed result if left out")
    given = options.parse_args()
    if given.rounds < 3:
        options.error(f"--rounds {given.rounds}: fewer than 3 have no spread")
    if not given.against.exists():
        raise SystemExit(f"{given.against} is not there: `python -m benchmarks.speed` writes what to compare with")
    old = json.loads(given.against.read_text(encoding="utf-8"))
    comparable = summaries(old, METHOD)
    cases = tuple(name for name in CASES if name in (given.cases.split(",") if given.cases else comparable))
    plan = Plan(cases, (METHOD,), given.rounds, 1, old["device"])
    file = ROOT / "build" / "speed" / "guard.jsonl"
    file.unlink(missing_ok=True)
    kept = Kept(file)
    try:
        measure(plan, kept)
    except WorkerError as error:
        raise SystemExit(str(error)) from error
    new = result(plan, kept)
    hardware = [told["about"]["own"]["device"] for told in (old, new)]
    if hardware[0] != hardware[1]:
        print(f"the committed result is of {hardware[0]}, this of {hardware[1]}: ratios differ between machines")
    rows = compared(old, new)
    print(table(("case", "committed", "now", "verdict"), [(name, *row) for name, row in rows.items()]))
    raise SystemExit(status([row[2] for row in rows.values()]))


def compared(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[float, float, Verdict]]:
    """Case → (median of `old`, of `new`, verdict) of every case that was measured again.

    A case of `new` that failed, or that was measured in other sizes, cannot be compared: SystemExit.
    """
    before, after = summaries(old, METHOD), summaries(new, METHOD)
    rows = {}
    for name in new["cases"]:
        if name not in after:
            raise SystemExit(f"{name}: {new['cases'][name]['methods'].get(METHOD, 'not measured')}")
        if name not in before:
            raise SystemExit(f"{name} is not in the committed result: measure it there first, or leave it out")
        if old["cases"][name]["settings"] != new["cases"][name]["settings"]:
            raise SystemExit(f"{name} has other sizes now than in the committed result: measure that again")
        rows[name] = before[name].median, after[name].median, verdict(before[name], after[name])
    if not rows:
        raise SystemExit("no case was measured: nothing was compared")
    return rows


def status(verdicts: list[Verdict]) -> int:
    """0 where all is well; 1 where one is worse; 2 where none is worse and one is not clear."""
    if "worse" in verdicts:
        return 1
    return 2 if "unclear" in verdicts else 0


if __name__ == "__main__":
    main()
