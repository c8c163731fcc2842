"""The code of docs/hub.md runs as it stands, against a hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.loopback_hub import LoopbackHub

from .folders import stored

ROOT = Path(__file__).parents[2]
BEFORE = 'from contract.tiny import base_model\nbase_model("llama").push_to_hub("me/base")\n'


def test_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "hub.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT / "tests")}
        done = subprocess.run(
            [sys.executable, "-c", BEFORE + "\n".join(blocks)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == ["default lora .", "edit reft reft/edit"]
        assert hub.storage.repos["me/poems"].private
        assert "reft/edit/reft_manifest.json" in stored(hub, "me/lora")
