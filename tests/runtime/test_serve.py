"""`python -m peft_reft -m transformers.cli.transformers serve`: a real server answers as the model generates."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils.import_utils import is_serve_available

from .folders import numbers, saved_adapter, saved_base, spoken
from .stepwise import greedy

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="transformers serve needs fastapi and openai: pip install 'peft-reft[serving]'"
)

STEPS = 6
SPEC = "f2+l2"
BATCHING = ("--continuous-batching", "--cb-block-size", "4", "--cb-num-blocks", "32", "--cb-max-batch-tokens", "8")
CHATS = ("w9 w8 w7", "w20 w21 w22 w23 w24 w25 w26 w27", "w33", "w9 w8 w7 w40 w41")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder that holds a whole model and the adapter's files, and the model."""
    folder = tmp_path_factory.mktemp("serve")
    base = saved_base(folder / "base")
    model = saved_adapter(folder / "adapter", base, SPEC)
    for name in ("adapter_config.json", "adapter_model.safetensors", "reft_manifest.json"):
        shutil.copy(folder / "adapter" / name, base)
    return base, model


@pytest.fixture(scope="module", params=["one by one", "continuous batching"])
def server(request: Any, saved: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that runs in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = BATCHING if request.param == "continuous batching" else ()
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "peft_reft", "-m", "transformers.cli.transformers", "serve", str(saved[0])),
                *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *flags),
            ],
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=log.parent,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not come up: {log.read_text()[-2000:]}")


def post(address: str, path: str, **body: Any) -> bytes:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: bytes = response.read()
        return answer


def chat(address: str, folder: Path, content: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    return post(
        address, "/v1/chat/completions", model=str(folder), messages=messages, max_tokens=STEPS, temperature=0, **more
    )


def wanted(model: Any, prompt: list[int]) -> list[int]:
    return spoken(greedy(model, SPEC, torch.tensor(prompt), STEPS))


def test_chats_at_once(server: str, saved: tuple[Path, Any]) -> None:
    """As many clients as there are chats; with continuous batching they share forwards."""
    folder, model = saved
    with ThreadPoolExecutor(len(CHATS)) as pool:
        answers = list(pool.map(lambda content: json.loads(chat(server, folder, content)), CHATS))
    for content, answer in zip(CHATS, answers, strict=True):
        found = numbers(answer["choices"][0]["message"]["content"])
        assert found == wanted(model, [4, *numbers(content), 5])
    given = torch.tensor([[4, *numbers(CHATS[0]), 5]])
    with model.disable_adapter():
        plain = model.generate(input_ids=given, max_new_tokens=STEPS, do_sample=False)[0, given.shape[1] :].tolist()
    assert spoken(plain) != wanted(model, given[0].tolist())


def test_a_stream(server: str, saved: tuple[Path, Any]) -> None:
    folder, model = saved
    events = chat(server, folder, CHATS[1], stream=True).decode().split("\n\n")
    parts = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])
    assert numbers(text) == wanted(model, [4, *numbers(CHATS[1]), 5])


def test_completions(server: str, saved: tuple[Path, Any]) -> None:
    folder, model = saved
    answer = json.loads(
        post(server, "/v1/completions", model=str(folder), prompt="w9 w8 w7 w6", max_tokens=STEPS, temperature=0)
    )
    assert numbers(answer["choices"][0]["text"]) == wanted(model, [9, 8, 7, 6])
