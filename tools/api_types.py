"""`python -m tools.api_types PYRIGHT FOLDER`: is the type of every public name known to an editor?

Runs `pyright --verifytypes peft_reft --ignoreexternal` on the installed package in FOLDER, with the libraries of the
Python that runs this. A class of ours whose base class comes from a library that is not installed cannot be known
here, and is counted apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from typing import Any

__all__ = ["faults", "main"]

NEEDS = {"peft_reft.integrations.lm_eval.": "lm_eval", "peft_reft.integrations.vllm.": "vllm"}
"""Start of a name → the library without which its base classes are unknown."""


def faults(report: dict[str, Any], missing: set[str]) -> tuple[list[str], list[str]]:
    """Names whose type is not known.

    Args:
        report: of `--outputjson`.
        missing: libraries that are not installed.

    Returns:
        Those that are ours to mend, each with what is said of it; and those of libraries that are missing.
    """
    unknown = [each for each in report["typeCompleteness"]["symbols"] if each["isExported"] and not _known(each)]
    gone = tuple(start for start, library in NEEDS.items() if library in missing)
    apart = [each["name"] for each in unknown if each["name"].startswith(gone)]
    mine = [
        f"{each['name']}: {'; '.join(said['message'] for said in each['diagnostics'] if said['severity'] == 'error')}"
        for each in unknown
        if each["name"] not in apart
    ]
    return mine, apart


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
    paths = [os.path.abspath(folder), sysconfig.get_path("purelib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path[1:]])}
    options = ["--pythonpath", sys.executable, "--verifytypes", "peft_reft", "--ignoreexternal", "--outputjson"]
    command = [os.path.abspath(pyright), *options]
    with tempfile.TemporaryDirectory() as elsewhere:  # in the folder itself it would be source, not a package
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    report = json.loads(done.stdout)
    mine, apart = faults(report, {name for name in NEEDS.values() if find_spec(name) is None})
    counts = report["typeCompleteness"]["exportedSymbolCounts"]
    total = sum(counts.values())
    print(*mine, sep="\n", end="\n" if mine else "")
    print(f"{total - len(mine) - len(apart)} of {total} public names have a known type; not seen here: {len(apart)}")
    return int(bool(mine) or total == 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
