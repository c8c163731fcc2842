"""`python -m examples.causal`: measures the examples and keeps the numbers, from which `render` makes the page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import names
from .render import FOLDER, RESULTS, table
from .report import measured_addition, measured_conjunction, measured_equality

_MEASURED = {"conjunction": measured_conjunction, "addition": measured_addition, "equality": measured_equality}


def main() -> None:
    """Measure, write, print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.causal", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of networks and searches")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the numbers go")
    parser.add_argument("--model", action="store_true", help="go through SmolLM2-135M-Instruct too (ten minutes)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"seeds": options.seeds}
    for name, measure in _MEASURED.items():
        results[name] = measure(options.seeds)
        print(f"{name} is measured")
    (options.folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    if options.model:
        whole, found, share = names.swept(names.loaded(), options.folder, progress=True)
        print(f"SmolLM2 answers {share:.0%} of the prompts rightly")
        print(f"best: layer and word {whole.best} whole, {found.best} searched")


if __name__ == "__main__":
    main()
