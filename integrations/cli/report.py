"""What a command says: lines and tables for people, one JSON object for programs, hostile characters in neither."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from peft_reft.hub_format.errors import ReftError

__all__ = [
    "JsonOption",
    "Report",
    "RevisionOption",
    "TokenOption",
    "describe_error",
    "error_lines",
    "plain",
    "table",
    "write_error",
    "write_report",
    "write_usage",
]

MAX_SHOWN = 400

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors too.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]
TokenOption = Annotated[str | None, typer.Option(envvar="HF_TOKEN", show_envvar=True, help="Token for the Hub.")]


@dataclass(frozen=True)
class Report:
    """The outcome of a command.

    Attributes:
        data: what `--json` prints beside the command's name and `ok`.
        lines: what a person reads; text is shown as it is, without rich's markup.
        status: the exit status.
    """

    data: Mapping[str, Any]
    lines: Sequence[str | RenderableType] = field(default_factory=tuple)
    status: int = 0


def plain(value: object) -> str:
    """A value as one line of text without control characters, bidirectional overrides and the like."""
    text = str(value)
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of plain cells, folded where the screen is narrow."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        made.add_column(head, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) for cell in row))
    return made


def describe_error(error: BaseException) -> dict[str, Any]:
    """code, file, value, rule, fix and message of an error; those that are not ours have the class as code."""
    if isinstance(error, ReftError):
        value = error.value if isinstance(error.value, (bool, int, type(None))) else str(error.value)[:MAX_SHOWN]
        return {
            "code": error.code,
            "file": error.file,
            "value": value,
            "rule": error.rule,
            "fix": error.fix,
            "message": str(error),
        }
    message = str(error).strip() or type(error).__name__
    return {"code": type(error).__name__, "file": None, "value": None, "rule": None, "fix": None, "message": message}


def error_lines(described: Mapping[str, Any]) -> list[str]:
    """An error for a person: the message, then what stands in its fields."""
    names = [name for name in ("code", "file", "value", "rule", "fix") if described[name] is not None]
    return [described["message"], *(f"  {name}: {described[name]}" for name in names)]


def write_report(name: str, report: Report, *, as_json: bool) -> None:
    """Print a report to stdout."""
    if as_json:
        _write_json({"command": name, "ok": report.status == 0, **report.data})
    else:
        _write_lines(report.lines, sys.stdout)


def write_error(name: str, error: BaseException, *, as_json: bool) -> None:
    """Print a refusal: to stderr, or as JSON to stdout."""
    described = describe_error(error)
    if as_json:
        _write_json({"command": name, "ok": False, "error": described})
    else:
        first, *rest = error_lines(described)
        _write_lines([f"peft-reft {name}: {first}", *rest], sys.stderr)


def write_usage(name: str, message: str, *, help_of: str = "", as_json: bool) -> None:
    """Print what is wrong with a command line, and which command's help tells more; the program's by default."""
    if as_json:
        _write_json({"command": name, "ok": False, "error": {"code": "usage", "message": message}})
    else:
        _write_lines(
            [
                f"{f'peft-reft {name}'.rstrip()}: {message}",
                f"  See `{' '.join(['peft-reft', *help_of.split(), '--help'])}`.",
            ],
            sys.stderr,
        )


def _write_json(value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, allow_nan=False)  # ASCII: control and bidirectional characters are escaped
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def _write_lines(lines: Sequence[str | RenderableType], stream: IO[str]) -> None:
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    for line in lines:
        if isinstance(line, str):
            console.print(Text(plain(line)), soft_wrap=True)
        else:
            console.print(line)
