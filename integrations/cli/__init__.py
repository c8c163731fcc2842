"""The command `peft-reft`. It needs the extra `cli`; importing this package does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit status: 0 done, 1 refused (or, of `diff`, different), 2 wrong usage.
    """
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("rich", "typer"):
            raise
        sys.stderr.write(f"peft-reft: {error}. The command line needs: pip install 'peft-reft[cli]'\n")
        return 1
    return run(sys.argv[1:] if arguments is None else arguments)
