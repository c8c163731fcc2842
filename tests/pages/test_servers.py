"""The pages' lines that start transformers' server do, and the pages' requests are answered by it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from runtime.test_serve import wait_for
from transformers.utils.import_utils import is_serve_available

from tools.site.blocks import command

from .places import adapter, base, execute, programs

pytestmark = [
    pytest.mark.skipif(not is_serve_available(), reason="the extra `serving` is not installed"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
PAGE = "docs/serving.md"
SMALL = "--host 127.0.0.1 --device cpu --cb-block-size 32 --cb-num-blocks 64 --cb-max-batch-tokens 64"


@contextmanager
def started(
    line: str, folder: Path, path: Path, more: Sequence[str] = ()
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A line that goes on until it is ended; gives the port that it was told to take, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = " ".join([f"exec {line}", *more, SMALL, f"--port {port}"])
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", words], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield port, process
    finally:
        process.terminate()
        process.wait(timeout=30)


def asked(page: str, port: int, folder: Path, path: Path, *, model: str | None = None) -> str:
    """Send the page's request, to its model or another; gives who answers."""
    line = command(page, "curl ").replace("localhost:8000", f"127.0.0.1:{port}")
    if model is not None:
        line = re.sub('"model": "[^"]+"', f'"model": "{model}"', line)
    answer = json.loads(execute(line.replace("curl ", "curl -sS -f ", 1), folder, path))
    return str(answer["choices"][0]["message"]["role"])


def test_the_lines_start_servers_that_answer_the_requests(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for number, name in enumerate(("me/emoji", "formal", "dates")):
        adapter(work / name, f"f{number + 1}+l1")
    base(work / "me/base")
    base(work / "served")
    for file in adapter(work / "alone").iterdir():
        if file.suffix != ".md":
            shutil.copy(file, work / "served")
    path = programs(tmp_path / "bin")
    many, one = command(PAGE, "peft-reft serve me/base --engine"), command(PAGE, "python -m peft_reft -m transformers")
    with ExitStack() as stack:
        dates = ("--adapter", "dates=./dates")  # the first adapter's page serves it by another engine's line
        port, process = stack.enter_context(started(many, work, path, dates))
        other, second = stack.enter_context(started(one, work, path))
        wait_for(f"http://127.0.0.1:{port}", process, work / f"{port}.log")
        answers = {
            page: asked(page, port, work, path) for page in ("docs/first_adapter.md", "docs/recipes/serving.md")
        }
        wait_for(f"http://127.0.0.1:{other}", second, work / f"{other}.log")
        assert asked("docs/recipes/serving.md", other, work, path, model="./served") == "assistant"
    assert set(answers.values()) == {"assistant"}
