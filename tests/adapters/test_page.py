"""The page on several adapters runs, and its table of sums is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from interventions.kinds import KINDS

from .test_weighted import FOLDING

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text("utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng():
        exec(compile("\n".join(blocks), "docs/adapters.md", "exec"), space)
    again = space["PeftModel"].from_pretrained(space["fresh_base"](), str(tmp_path / "saved" / "both")).eval()
    torch.testing.assert_close(again(input_ids=space["ids"]).logits, space["expected"], atol=1e-5, rtol=1e-5)


def test_the_table_names_the_kinds_that_take_a_factor() -> None:
    table = PAGE.partition("| kinds |")[2].partition("\n\n")[0].splitlines()
    cells = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table[2:]]
    assert set().union(*cells[:-1]) == set(FOLDING)
    named = {kind.name for kind in KINDS}
    assert (cells[-1] - {"act_fn", "loreft", "noreft", "scaled"}) <= named - set(FOLDING)
