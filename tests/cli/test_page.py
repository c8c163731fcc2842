"""The examples of docs/cli.md run as they stand, one after another, against a Hub on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from contract.tiny import base_model
from tools.loopback_hub import LoopbackHub

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
SCRIPT = """
import shlex, sys
from peft_reft.integrations.cli import main
for line in sys.stdin.read().splitlines():
    print(main(shlex.split(line, comments=True)[1:]), line, file=sys.stderr, flush=True)
"""


def test_every_example_runs(folders: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    lines = block.strip().splitlines()
    assert {shlex.split(line)[1] for line in lines} == {"inspect", "validate", "diff", "push", "pull", "convert"}
    (tmp_path / "my-reft").symlink_to(folders / "reft")
    base_model("llama").save_pretrained(tmp_path / "base")
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment()}
        seed = f"peft-reft push {folders / 'both'} me/both"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input="\n".join([seed, *lines]),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
    for line in lines:
        assert f"0 {line}" in done.stderr, done.stderr
