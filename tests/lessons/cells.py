"""Runs a notebook's code cells in this process and gives what each shows; as a program it writes that as JSON."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["run_cells"]

COMMAND = re.compile(r"^!peft-reft (.*)$", re.MULTILINE)


def run_cells(notebook: dict[str, Any]) -> list[str]:
    """For every code cell what it prints, and its last value as HTML, SVG or text."""
    names: dict[str, Any] = {"__name__": "__main__", "_command": _command}
    shown = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            source = COMMAND.sub(lambda found: f"_command({found[1]!r})", "".join(cell["source"]))
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = _run(source, f"cell {number}", names)
            shown.append(printed.getvalue() + ("" if value is None else _picture(value)))
    return shown


def _run(source: str, name: str, names: dict[str, Any]) -> Any:
    """Execute a cell; returns the value of its last line where that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def _picture(value: Any) -> str:
    for method in ("_repr_html_", "_repr_svg_"):
        if hasattr(value, method) and (found := getattr(value, method)()) is not None:
            return str(found)
    return repr(value)


def _command(line: str) -> None:
    from peft_reft.integrations.cli import main

    assert main(shlex.split(line)) in (0, 1), line  # 1: `diff` found differences


if __name__ == "__main__":
    cells = run_cells(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(cells), "utf-8")
