"""`peft-reft`: one subcommand per module of this folder, on argparse alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from peft_reft.hub_format.errors import ReftError

from . import convert

__all__ = ["main"]

COMMANDS = {"convert": convert}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 refused with the reason on stderr, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="peft-reft", description="ReFT adapters for Hugging Face PEFT.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        module.add_arguments(commands.add_parser(name, help=summary, description=f"{summary} {details.strip()}"))
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{COMMANDS[given.command].run(given)}\n")
    except (ReftError, ImportError, OSError) as error:
        sys.stderr.write(f"peft-reft {given.command}: {error}\n")
        return 1
    return 0
