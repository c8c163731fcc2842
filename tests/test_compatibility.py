"""The table of docs/compatibility.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_the_table_names_exists() -> None:
    found = NAMED.findall(PAGE)
    assert len(found) > 10
    for path, name in found:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_row_says_which_test_ran_where() -> None:
    """The last two cells of a row are the test and the hardware."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    body = [row for row in rows if not set(row[0]) <= set("- ") and row[-1].strip() != "hardware last"]
    assert body
    for row in body:
        assert NAMED.search(row[-2]), row
        assert "CPU" in row[-1] or "GPU" in row[-1], row
