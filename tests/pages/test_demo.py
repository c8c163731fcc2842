"""The command of the first page, on a tiny model in place of the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.site.blocks import command

from .places import ROOT, base


@pytest.mark.slow
def test_the_demo_learns_pushes_loads_and_reports(tmp_path: Path) -> None:
    """As `make demo MODEL=…`; what a tiny model learns of it is nothing that one could check."""
    line = command("README.md", "make demo")
    assert line == command("docs/install.md", "make demo") == "make demo"
    ready = ["-f", str(ROOT / "Makefile"), "-o", ".venv/demo.stamp", f"BIN={Path(sys.executable).parent}"]
    command_line = [*line.split(), *ready, f"MODEL={base(tmp_path / 'base')}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "LoRA (q, v) + ReFT" in done.stdout
    assert (tmp_path / "demo-output" / "verdicts" / "reft").is_dir()
