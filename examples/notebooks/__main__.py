"""`python -m examples.notebooks [NAME…]`: executes the lessons and writes their outputs into them.

They run on SmolLM2-135M-Instruct, some minutes each on two cores, with an empty folder as the working folder. What
differs from run to run (seconds, progress, warnings of other libraries) is left out, so that a notebook changes only
where its code or its results do.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tools.base_model import ensure_base_model

from .execute import NOTEBOOKS, execute, notebook_named, read, write


def main() -> None:
    """Execute the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(prog="examples.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of their names, e.g. 1 3")
    names = parser.parse_args().names
    chosen = [notebook_named(name) for name in names] or NOTEBOOKS
    os.environ.setdefault("LESSON_MODEL", str(Path(ensure_base_model()).absolute()))
    for path in chosen:
        print(f"executing {path.name}", flush=True)
        write(path, execute(read(path)))


if __name__ == "__main__":
    main()
