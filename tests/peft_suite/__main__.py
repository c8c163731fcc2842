"""`python -m peft_suite [pytest's arguments]`: fetch, prepare and run; from the folder `tests`."""

from __future__ import annotations

import sys
from pathlib import Path

from .run import run_suite

if __name__ == "__main__":
    raise SystemExit(run_suite(Path(__file__).parents[2] / "build" / "peft_suite", sys.argv[1:]).returncode)
