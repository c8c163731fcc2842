"""`python -m benchmarks.serving`: requests of many adapters, ours beside vLLM's LoRAs; see `benchmarks/README.md`.

It runs in the environment of `make test-serving`, or in one with vLLM for a GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.speed.about import ROOT
from benchmarks.speed.options import RESULTS, add_places, chosen, command_line, counted, resumable
from tools.base_model import ensure_base_model

from .adapters import KINDS, write_adapters
from .figure import draw
from .load import ARRIVALS, COUNTS, Load
from .result import markdown, result, write
from .rounds import Plan, Served, measure

__all__ = ["main"]


def main() -> None:
    """Measure what is missing, write table and figure, print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base", help="folder of a base model; SmolLM2-135M-Instruct if left out")
    options.add_argument("--arrivals", default=",".join(ARRIVALS), help="with commas between")
    options.add_argument("--counts", default=",".join(map(str, COUNTS)), help="adapters; with commas between")
    options.add_argument("--kinds", default=",".join(KINDS), help="of adapters, beside the base; commas")
    options.add_argument("--rounds", type=counted, default=3)
    options.add_argument("--decodes", type=counted, default=20, help="rounds of the steps that only decode")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: wall time")
    options.add_argument("--table", action="store_true", help="of what is kept alone; nothing is measured")
    add_places(options)
    given = options.parse_args()
    if given.fresh and given.table:
        options.error("--fresh drops what is kept, --table tells of it: give one of them")
    base = str(ensure_base_model(given.base))
    name = "serving" if given.device == "cpu" else f"serving-{given.device}"
    kept_in = given.kept or ROOT / "build" / "serving" / f"{name}.jsonl"
    adapters = ROOT / "build" / "serving" / "adapters" / Path(base).name
    plan = Plan(
        base=base,
        python=Path(sys.executable),
        adapters=adapters,
        load=Load(),
        arrivals=chosen(given.arrivals, ARRIVALS),
        counts=[int(count) for count in chosen(given.counts, [str(count) for count in COUNTS])],
        kinds=("base", *chosen(given.kinds, KINDS)),
        rounds=given.rounds,
        decodes=given.decodes,
        device=given.device,
    )
    if given.fresh and not given.table:  # all that was asked for has been understood by now
        kept_in.unlink(missing_ok=True)
    kept = Served.read(kept_in)
    if given.table and not kept.told:
        raise SystemExit(f"nothing is kept in {kept_in}, and a table of nothing would replace the one that is there")
    if not given.table:
        write_adapters(adapters, base)
        with resumable(kept):
            measure(plan, kept)
    told = result(plan, kept)
    stem, command = given.output or RESULTS / name, command_line("benchmarks.serving")
    write(told, stem, command)
    draw(told, stem.with_suffix(".svg"))
    print(markdown(told, command, stem.name))


if __name__ == "__main__":
    main()
