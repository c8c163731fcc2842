"""The page on learning in sequence runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = (Path(__file__).parents[2] / "docs" / "continual.md").read_text("utf-8")


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 6
    space: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng():
        exec(compile("\n".join(blocks), "docs/continual.md", "exec"), space)
    assert set(space["told"].weights) == {"dates", "names"}
    assert space["model"].active_adapters == ["both"]
