"""The page on causal tools runs, and shows the figures of the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from examples.causal import conjunction

PAGE = (Path(__file__).parents[2] / "docs" / "causal.md").read_text()


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 7
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng():
        exec(compile("\n".join(blocks), "docs/causal.md", "exec"), space)
    again = PeftModel.from_pretrained(space["model"].unload(), str(tmp_path / "sets-a"))
    ids = space["tokens"](space["rows"])
    assert space["answer"](again(input_ids=ids)).argmax(-1).tolist() == [row["Q"] for row in space["rows"]]


def test_the_figures_of_the_page_are_those_of_the_example() -> None:
    shown = dict(re.findall(r"\| conjunction, (neurons|turned by 20 degrees) \| ([\d.]+) % \|", PAGE))
    assert shown["neurons"] == f"{100 * conjunction.measured(conjunction.turned(0)).value:.1f}"
    assert shown["turned by 20 degrees"] == f"{100 * conjunction.measured(conjunction.turned(20)).value:.0f}"
