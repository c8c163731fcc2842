"""The README's first success and the page on the first adapter run as they stand, on the real model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.base_model import ensure_base_model, package_gaps

ROOT = Path(__file__).parents[1]
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.slow
@pytest.mark.skipif(bool(package_gaps()), reason=f"the small base model is not here: {package_gaps()}")
def test_the_first_success_of_the_readme(tmp_path: Path) -> None:
    (code,) = re.findall(r"## First success\n\n```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert NAME in code
    script = tmp_path / "first.py"
    script.write_text(code.replace(NAME, str(ensure_base_model())), "utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "🤖💬🌐🧠" in done.stdout
    assert (tmp_path / "my-reft" / "reft_manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(bool(package_gaps()), reason=f"the small base model is not here: {package_gaps()}")
def test_the_first_adapter_learns_its_skill(tmp_path: Path) -> None:
    """All but what goes to the Hub, which `tests/pages` runs; it prints the dates that the page shows."""
    text = (ROOT / "docs" / "first_adapter.md").read_text("utf-8")
    blocks = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "me/dates" not in code]
    script = tmp_path / "first.py"
    script.write_text("\n".join(blocks).replace(NAME, str(ensure_base_model())), "utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for date in ("1999-03-12", "2001-05-21"):
        assert date in text
        assert date in done.stdout
    (share,) = re.findall(r"^\{'exact': ([\d.]+)\}$", done.stdout, re.MULTILINE)
    assert float(share) >= 0.9  # of 40; other processors round otherwise
