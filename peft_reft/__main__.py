"""`python -m peft_reft SCRIPT …` and `python -m peft_reft -m MODULE …`: run a program that does not import us.

Loading an adapter of an unknown type is a bare `KeyError: 'REFT'` in PEFT and transformers; here the type is
registered before the program starts.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import peft_reft  # noqa: F401  # registers the method

INTEGRATED = {"lm_eval": "peft_reft.integrations.lm_eval"}
"""Program → the module of ours that makes itself known to it when it is imported."""

USAGE = "usage: python -m peft_reft SCRIPT [ARG …] | python -m peft_reft -m MODULE [ARG …]"


def main(arguments: list[str]) -> None:
    """Run the script or module named by the arguments as `__main__`."""
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] == "-m" and len(arguments) < 2):
        raise SystemExit(USAGE)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        _integrate(arguments[1].partition(".")[0])
        sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    if not Path(arguments[0]).is_file():
        raise SystemExit(f"{arguments[0]} is not a file. {USAGE}")
    sys.argv = arguments
    _integrate(Path(arguments[0]).name.replace("-", "_"))  # `lm-eval`, as pip installs it
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")


def _integrate(program: str) -> None:
    if program in INTEGRATED:
        importlib.import_module(INTEGRATED[program])


if __name__ == "__main__":
    main(sys.argv[1:])
