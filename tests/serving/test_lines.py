"""The pages' lines that start vLLM's server do, and the pages' requests are answered by it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.site.blocks import command

from . import bases
from .engines import ENVIRONMENT
from .test_server import wait_until_ready

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

SMALL = "--dtype float32 --max-num-seqs 8 --block-size 32 --max-num-batched-tokens 64 --host 127.0.0.1 --enforce-eager"
LINES = (
    ("docs/first_adapter.md", "peft-reft serve", "docs/first_adapter.md"),
    ("docs/recipes/serving.md", "peft-reft serve", "docs/recipes/serving.md"),
    ("docs/serving.md", "peft-reft serve me/base --adapter", "docs/recipes/serving.md"),
)
"""Page, how its line begins, and the page with a request that it can answer."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("page", "start", "asking"), LINES, ids=[page for page, _, _ in LINES])
def test_a_line_starts_a_server_that_answers(page: str, start: str, asking: str, tmp_path: Path) -> None:
    words = shlex.split(command(page, start))
    base = bases.saved_base(tmp_path / words[2], max_position_embeddings=8192)
    for number, given in enumerate(word for word in words if "=" in word):
        bases.saved_adapter(tmp_path / given.partition("=")[2], base, "f2+l1", seed=number)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name(words[0]))
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    with (log := tmp_path / "log").open("wb") as written:
        process = subprocess.Popen(
            [program, *words[1:], *SMALL.split(), "--port", str(port)],
            cwd=tmp_path,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        line = command(asking, "curl ").replace("localhost:8000", f"127.0.0.1:{port}")
        said = subprocess.run([*shlex.split(line), "-sS", "-f"], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr + log.read_text("utf-8")[-3000:]
        assert json.loads(said.stdout)["choices"][0]["message"]["role"] == "assistant"
    finally:
        process.terminate()
        process.wait(timeout=60)
