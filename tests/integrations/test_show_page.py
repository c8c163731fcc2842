"""The page on positions: its code runs, and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .tiny_sft import tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "positions.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def test_the_code_prints_what_stands_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 10
    tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for code, printed in blocks:
        exec(compile(code, PAGE.name, "exec"), names)
        assert "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) == printed.rstrip("\n"), code


def test_every_term_has_its_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for term in ("f<n>", "l<n>", "prompt", "p[a:b]", "generated", "g[a:b]", "all", "tok("):
        assert re.search(rf"^\|.*`{re.escape(term)}.*\|$", text, re.MULTILINE), term
