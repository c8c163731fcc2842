"""The app: one command per module of this folder, one place where reports and refusals leave the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from safetensors import SafetensorError
from typer.exceptions import Abort, TyperException
from typer.main import get_command

from peft_reft import __version__

from .bundle import bundle
from .convert import convert
from .diff import diff
from .export_prefix import export_prefix
from .inspect import inspect
from .pull import pull
from .push import push
from .report import Report, write_error, write_report, write_usage
from .serve import PASSED_ON, serve
from .show import show
from .validate import validate

__all__ = ["run"]

EXPECTED: tuple[type[Exception], ...] = (ImportError, OSError, SafetensorError, ValueError)
"""What a wrong argument, file or repository raises; `ReftError` is a `ValueError`. Anything else is a bug of ours."""

app: typer.Typer = typer.Typer(
    name="peft-reft",
    help="ReFT adapters for Hugging Face PEFT. Exit status: 0 done, 1 refused or different, 2 wrong usage.",
    add_completion=False,
    rich_markup_mode=None,
)


def _tell(version: bool) -> None:
    if version:
        typer.echo(f"peft-reft {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_tell)
    ] = False,
) -> None:
    pass


for _function in (bundle, convert, diff, export_prefix, inspect, pull, push, show, validate):
    app.command(name=_function.__name__.replace("_", "-"))(_function)
app.command(name="serve", context_settings=PASSED_ON)(serve)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status."""
    as_json = "--json" in arguments
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    try:
        report = get_command(app).main(args=list(arguments), prog_name="peft-reft", standalone_mode=False)
    except TyperException as error:
        known = any(command.name == name for command in app.registered_commands)
        write_usage(name, error.format_message(), help_of=name if known else "", as_json=as_json)
        return 2
    except Abort:
        return 130
    except EXPECTED as error:
        write_error(name, error, as_json=as_json)
        return 1
    if not isinstance(report, Report):
        return int(report or 0)  # --help
    write_report(name, report, as_json=as_json)
    return report.status
