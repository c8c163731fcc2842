"""The lessons: every cell runs, on a tiny model in seconds, and on the real one with the results they tell of."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integrations.tiny_sft import base_model, tokenizer

from examples.notebooks.execute import NOTEBOOKS, execute, read
from peft_reft.interventions import registry
from tools.base_model import ensure_base_model, package_gaps

from .cells import run_cells

pytest.importorskip("IPython", reason="notebooks show pictures by it: pip install 'peft-reft[notebooks]'")

TESTS = Path(__file__).parents[1]
EMOJI = ("🤖💬🌐🧠", "👤❓🔍🌟", "🔢➕🔢➡️🍀", "🌍🛡️☀️➡️🔵🌌", "🍏💹🤷‍♂️")
BY_NAME = {path.stem: path for path in NOTEBOOKS}
HUB = "4_two_skills_one_repository"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a tiny model that the lessons take instead of the real one."""
    words = copy.deepcopy(tokenizer())
    words.model_input_names = ["input_ids", "attention_mask"]
    words.save_pretrained(tmp_path / "base")
    base_model().save_pretrained(tmp_path / "base")
    monkeypatch.setenv("LESSON_MODEL", str(tmp_path / "base"))
    monkeypatch.setenv("LESSON_STEPS", "5")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def kinds() -> Any:
    """Kinds that a lesson registers are forgotten afterwards."""
    from peft_reft.hub_format.kinds import _KINDS

    tables = (_KINDS, registry._CLASSES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != HUB])
def test_every_cell_runs_on_a_tiny_model(name: str, tiny: Path, kinds: None) -> None:
    shown = run_cells(read(BY_NAME[name]))
    pictures = [text for text in shown if "<div" in text or "<svg" in text or "<table" in text]
    assert len(pictures) >= 2


def test_the_lesson_that_pushes_runs_against_a_hub_of_its_own(tiny: Path) -> None:
    """In a process of its own: a notebook tells the Hub's client where the Hub is before it is imported."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-m", "lessons.cells", str(BY_NAME[HUB]), str(tiny / "shown.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads((tiny / "shown.json").read_text("utf-8"))
    assert any("emoji    reft  in reft/emoji" in text for text in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_all_there_or_none_and_small_and_clean(path: Path) -> None:
    """`make notebooks` writes them; a lesson that was changed by hand is committed without any."""
    notebook = read(path)
    assert path.stat().st_size < 200_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    if not outputs:
        assert {cell["execution_count"] for cell in code} == {None}
        return
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any(
        "text/html" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}) for output in outputs
    )
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = json.dumps(notebook)
    for place in (str(Path.home()), str(TESTS.parent), ".cache/", "/tmp/", "train_runtime"):
        assert place not in text, place


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_to_files(path: Path) -> None:
    text = "".join("".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    local = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in target]
    assert local
    assert [target for target in local if not (path.parent / target).is_file()] == []


@pytest.mark.slow
@pytest.mark.skipif(bool(package_gaps()), reason=f"the small base model is not here: {package_gaps()}")
@pytest.mark.parametrize("name", list(BY_NAME))
def test_the_real_model_does_what_the_lesson_tells(name: str) -> None:
    done = execute(read(BY_NAME[name]), {"LESSON_MODEL": str(Path(ensure_base_model()).absolute())})
    printed = "".join(
        "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
        for cell in done["cells"]
        for output in cell.get("outputs", [])
    )
    if name.startswith("1"):
        assert printed.count("✓") == 5
        assert "✗" not in printed
        assert all(answer in printed for answer in EMOJI)
    if name.startswith("2"):
        assert "same answer: True" in printed
    if name.startswith("3"):
        assert "{'Maria': 112} of 112" in printed
        assert "112 of 112 prompts are answered with Tom" in printed
    if name == HUB:
        assert printed.count("👍 Go!") >= 2
        assert "👎 Skip it." in printed
        assert EMOJI[0] in printed
