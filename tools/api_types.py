"""`python -m tools.api_types PYRIGHT FOLDER`: is the type of every public name known to an editor?

Runs `pyright --verifytypes peft_reft --ignoreexternal` on the installed package in FOLDER, with the libraries of the
Python that runs this. Of libraries that are not installed, `stubs/` declares the classes that ours derive from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["STUBS", "faults", "main"]

STUBS = Path(__file__).parent / "stubs"
"""A folder for each library; where it is installed, its own types count."""


def faults(report: dict[str, Any]) -> list[str]:
    """Names whose type is not known, each with what is said of it.

    Args:
        report: of `--outputjson`.
    """
    unknown = [each for each in report["typeCompleteness"]["symbols"] if each["isExported"] and not _known(each)]
    return [
        f"{each['name']}: {'; '.join(said['message'] for said in each['diagnostics'] if said['severity'] == 'error')}"
        for each in unknown
    ]


def _known(symbol: dict[str, Any]) -> bool:
    return bool(symbol["isTypeKnown"]) and not symbol["isTypeAmbiguous"]


def main(pyright: str, folder: str) -> int:
    """Run it.

    Args:
        pyright: the program.
        folder: that holds the package as it is installed.

    Returns:
        The exit status.
    """
    paths = [os.path.abspath(folder), sysconfig.get_path("purelib"), *sys.path[1:], str(STUBS)]  # stubs come last
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    options = ["--pythonpath", sys.executable, "--verifytypes", "peft_reft", "--ignoreexternal", "--outputjson"]
    command = [os.path.abspath(pyright), *options]
    with tempfile.TemporaryDirectory() as elsewhere:  # in the folder itself it would be source, not a package
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    report = json.loads(done.stdout)
    found = faults(report)
    total = sum(report["typeCompleteness"]["exportedSymbolCounts"].values())
    declared = sorted(each.name for each in STUBS.iterdir() if find_spec(each.name) is None)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{total - len(found)} of {total} public names have a known type; by stubs: {', '.join(declared) or 'none'}")
    return int(bool(found) or total == 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
