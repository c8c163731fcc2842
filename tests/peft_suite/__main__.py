"""`python -m peft_suite [pytest's arguments]`: fetch, prepare and run; from the folder `tests`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .configs import TABLES
from .fetch import fetch_tests
from .stand_ins import make_cache

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run PEFT's tests of our configs in a process of their own; pytest's exit code."""
    folder = ROOT / "build" / "peft_suite"
    package = fetch_tests(folder)
    home = folder / "home"
    make_cache(home)
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")]),
    }
    files = [str(package / f"{module}.py") for module in TABLES]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder)]
    chosen = ["-p", "peft_suite.plugin", "-p", "no:cacheprovider", "-k", "ReftConfig", "-q", *sys.argv[1:]]
    return subprocess.run([*command, *chosen, *files], env=environment, check=False, cwd=folder).returncode


if __name__ == "__main__":
    raise SystemExit(main())
