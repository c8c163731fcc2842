"""`python -m benchmarks.quality.cost`: what a training step of every method costs, in processes of their own.

The base is loaded once; each method is measured in a fork of that process, one after the other, in rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.speed.options import counted
from benchmarks.study.base import BASES, Base, load_base
from benchmarks.study.methods import METHODS
from benchmarks.study.options import BATCH, SIZES, listed
from benchmarks.study.rows import Row
from benchmarks.study.runs import RESULTS, machine
from benchmarks.study.step_cost import TIMED, WARM, step_cost

from .run import rows_of

__all__ = ["apart", "main", "page"]

SKILL = "camel"
Costs = Mapping[str, float]


def main() -> None:
    """Measure, write the page and its JSON, print the page."""
    import torch

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base", choices=BASES, default=BASES[0])
    options.add_argument("--methods", default=",".join(METHODS), help="with commas between")
    options.add_argument("--rounds", type=counted, default=3)
    options.add_argument("--output", type=Path, default=RESULTS / "cost", help="the files, without ending")
    given = options.parse_args()
    methods = listed(given.methods, METHODS)
    torch.set_num_threads(1)
    base, rows = load_base(given.base), rows_of(given.base, SKILL, SIZES)[0][:BATCH]
    rounds = _rounds(base, rows, methods, given.rounds)
    about = {"base": base.name, "identity": base.identity, "machine": machine()}
    told = {**about, "tokens": max(map(len, rows)), "rounds": rounds}
    given.output.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    given.output.with_suffix(".md").write_text(page(told), encoding="utf-8")
    print(page(told))


def _rounds(base: Base, rows: list[Row], methods: Sequence[str], count: int) -> list[dict[str, Costs]]:
    made = []
    for number in range(count):
        found: dict[str, Costs] = {}
        for method in methods:
            found[method] = apart(step_cost, base, method, rows)
            print(f"[{number + 1}/{count}] {method}: {found[method]['step']:.3f} s", flush=True)
        made.append(found)
    return made


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns in a fork of this process, which must not have computed gradients (torch forbids it then).

    Raises:
        RuntimeError: it ended without a result; its traceback is on the standard error.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_told, args=(there, work, given))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise RuntimeError(f"{work.__name__} ended in its process without a result") from error
    finally:
        child.join()


def _told(there: Connection, work: Callable[..., Any], given: Sequence[Any]) -> None:
    there.send(work(*given))


def page(told: Mapping[str, Any]) -> str:
    """A row for each method, by rising cost of a step; what was measured; hardware and versions."""
    rounds: Sequence[Mapping[str, Costs]] = told["rounds"]
    rows = {method: _row(method, [one[method] for one in rounds]) for method in rounds[0]}
    return "\n".join(
        [
            f"# What a training step costs, base {told['base']} ({told['identity']})",
            "",
            "| method | parameters | ÷ forward of the base | processor seconds | peak memory, MiB | saved, KiB |",
            "| --- | --: | --: | --: | --: | --: |",
            *(row for _, row in sorted(rows.values())),
            "",
            f"A step is forward, backward, clipping and AdamW on {BATCH} examples of `{SKILL}`, padded to "
            f"{told['tokens']} tokens, the same for all. Each method in a process of its own of one thread, one after "
            f"the other, in {len(rounds)} rounds: the median of {TIMED} steps after {WARM}, over that of as many "
            "forwards of the frozen base on this batch in the same process. Figures are medians over rounds, in "
            "brackets the lowest and the highest. *Peak memory*: what steps add to the process that holds the model "
            "with its adapter. *Saved*: all files that `save_pretrained` writes; of `full` the weights that learn. "
            "Where upper blocks learn, what enters them is known before: neither steps nor forwards compute it.",
            "",
            *(f"- {name}: {value}" for name, value in told["machine"].items()),
            "",
        ]
    )


def _row(method: str, held: Sequence[Costs]) -> tuple[float, str]:
    """The median ratio, which rows are sorted by, and the row."""
    ratios = [one["step"] / one["forward"] for one in held]
    middle = {name: statistics.median(one[name] for one in held) for name in held[0]}
    ratio = statistics.median(ratios)
    cells = [
        method,
        f"{middle['parameters']:,.0f}",
        f"{ratio:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        f"{middle['step']:.3f}",
        f"{middle['peak']:.0f}",
        f"{middle['saved'] / 1024:,.0f}",
    ]
    return ratio, f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
