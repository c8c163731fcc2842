"""The code of docs/compiling.md runs as it stands, but for the backend, which would take minutes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .counting import counting_backend, fresh_compiler

PAGE = (Path(__file__).parents[2] / "docs" / "compiling.md").read_text("utf-8")


def test_the_code_of_the_page_runs_and_takes_the_graphs_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S))
    assert code.count("compile(fullgraph=True)") == 2
    backend, graphs = counting_backend()
    space: dict[str, Any] = {"counted": backend}
    with fresh_compiler():
        exec(code.replace("compile(fullgraph=True)", "compile(fullgraph=True, backend=counted)"), space)
    assert len(graphs) == 2
