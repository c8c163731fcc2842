"""Runs a script as python does, with ReFT known to PEFT: `python with_reft.py run.py -v experiments/reft/…`.

PEFT reads `peft_type` from an experiment's `adapter_config.json`, and a method from outside is known to it once its
package has been imported. Nothing of PEFT's is changed. In its folder: `make PYTHON="python /path/to/with_reft.py"`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import peft_reft

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Run the script that the first argument names, with the others.

    Raises:
        SystemExit: no script was named.
    """
    if not arguments:
        raise SystemExit(f"usage: python with_reft.py run.py ...   (peft-reft {peft_reft.__version__})")
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))  # as python does for a script
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
