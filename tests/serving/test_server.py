"""`peft-reft serve` in a process of its own, asked by the `openai` client as its users ask it."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import STEPS, World
from .engines import ENVIRONMENT

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

ROOT = Path(__file__).parents[2]
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "8", "--block-size", "32"),
    *("--max-num-batched-tokens", "64", "--host", "127.0.0.1", "--enforce-eager"),
)


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    url: str
    base: str
    world: World
    process: int

    def memory(self) -> int:
        """Bytes that the server's processes hold."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
        tree = [self.process]
        for parent in tree:
            tree += children.get(parent, [])
        pages = [
            int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree if Path(f"/proc/{one}").exists()
        ]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def says(self, name: str | None, prompt: list[int], **more: Any) -> list[int]:
        """The tokens of a greedy completion."""
        answer = self.client.completions.create(
            model=name or self.base,
            prompt=prompt,
            max_tokens=STEPS,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True, **more},
        )
        return list(answer.choices[0].token_ids)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def started(world: World, log: Path, *flags: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapters = [f"--adapter={name}={world.adapters[name]}" for name in ("tied", "all", "untied")]
    program = str(Path(sys.executable).with_name("peft-reft"))
    command = [program, "serve", str(world.base), *adapters, *FLAGS, *flags]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=ROOT, stdout=written, stderr=subprocess.STDOUT, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process, log)
    return process, url


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(log.read_text("utf-8", "replace")[-4000:])
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    process.kill()
    pytest.fail("the server did not start within ten minutes")


@pytest.fixture(scope="module")
def server(llama: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    process, url = started(llama, tmp_path_factory.mktemp("log") / "server.log", "--allow-runtime-loading")
    yield Serving(url, str(llama.base), llama, process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


def test_models_are_listed_and_answer_as_themselves(server: Serving) -> None:
    listed = {model.id for model in server.client.models.list()}
    assert listed == {server.base, "tied", "all", "untied"}
    asked = [entry for entry in server.world.every() if entry[0] in (None, "tied", "all", "untied")]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda entry: server.says(*entry), asked))
    assert found == server.world.expected(asked)


def test_a_stream_brings_the_same_tokens(server: Serving) -> None:
    prompt = server.world.every()[0][1]
    pieces = server.client.completions.create(
        model="tied", prompt=prompt, max_tokens=STEPS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    said = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert [int(word[1:]) for word in said.split()] == server.world.says("tied", tuple(prompt))


def test_a_chat_counts_positions_in_the_rendered_conversation(server: Serving) -> None:
    answer = server.client.chat.completions.create(
        model="untied",
        messages=[{"role": "user", "content": "w9 w8 w7"}],
        max_tokens=STEPS,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.model == "untied"
    said = [int(word[1:]) for word in answer.choices[0].message.content.split()]
    assert said == server.world.says("untied", (4, 9, 8, 7, 5))


@pytest.mark.parametrize("model", ["nobody", "../tied", "tied/../all", "", "a" * 5000, "tied\x00"], ids=ascii)
def test_a_name_that_is_not_served_is_not_found(server: Serving, model: str) -> None:
    status, answer = server.post("/v1/completions", {"model": model, "prompt": [9], "max_tokens": 1})
    if model:
        assert status == 404, answer
    else:  # vLLM: no name is the base
        assert status == 200


@pytest.mark.parametrize("named", ["nobody", "all", "tied.1.0", 3], ids=str)
def test_an_adapter_smuggled_in_is_a_bad_request(server: Serving, named: Any) -> None:
    body = {"model": "tied", "prompt": [9], "max_tokens": 1, "vllm_xargs": {"reft": named}}
    status, answer = server.post("/v1/completions", body)
    assert status == 400, answer
    assert "reft" in answer["error"]["message"].lower()


def test_beams_are_refused(server: Serving) -> None:
    body = {"model": "tied", "prompt": [9], "max_tokens": 2, "use_beam_search": True, "n": 2}
    status, answer = server.post("/v1/completions", body)
    assert status == 400
    assert "beam" in answer["error"]["message"]


def test_an_adapter_comes_and_goes_while_the_server_runs(server: Serving) -> None:
    prompt = server.world.every()[0][1]
    load = {"reft_name": "later", "reft_path": str(server.world.adapters["activated"])}
    assert server.post("/v1/load_reft_adapter", load)[0] == 200
    assert server.post("/v1/load_reft_adapter", load)[0] == 400  # it is there
    assert server.says("later", prompt) == server.world.says("activated", tuple(prompt))
    other = {**load, "reft_path": str(server.world.adapters["generated"]), "replace": True}
    assert server.post("/v1/load_reft_adapter", other)[0] == 200
    assert server.says("later", prompt) == server.world.says("generated", tuple(prompt))
    assert server.post("/v1/unload_reft_adapter", {"reft_name": "later"})[0] == 200
    assert server.post("/v1/unload_reft_adapter", {"reft_name": "later"})[0] == 404
    assert server.post("/v1/completions", {"model": "later", "prompt": [9], "max_tokens": 1})[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {"reft_name": "../x", "reft_path": "/"},
        {"reft_name": "x", "reft_path": "/etc"},
        {"reft_name": "x", "reft_path": "/etc/passwd"},
        {"reft_name": "x", "reft_path": ""},
        {"reft_name": "x", "reft_path": "/nowhere/at/all/here"},
        {"reft_name": "x"},
        {"reft_name": "x", "reft_path": "y", "unknown": 1},
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_a_bad_request(server: Serving, body: dict[str, Any]) -> None:
    status, _ = server.post("/v1/load_reft_adapter", body)
    assert status in (400, 422)
    assert "x" not in {model.id for model in server.client.models.list()}


def test_requests_are_counted_by_adapter(server: Serving) -> None:
    server.says("tied", [9, 8])
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    assert 'vllm:reft_requests_total{adapter="tied"}' in text
    assert "vllm:reft_adapters 3.0" in text
    assert "nobody" not in text


def test_a_soak_mixes_nothing_up_and_leaks_nothing(server: Serving) -> None:
    """Random adapters, cancelled streams, bad names, names smuggled in, adapters that come and go, eight at a time.

    Memory is compared from the first quarter on, by when caches are full. `PEFT_REFT_SOAK` says how many requests.
    """
    count = int(os.environ.get("PEFT_REFT_SOAK", "200"))
    entries = [entry for entry in server.world.every() if entry[0] in (None, "tied", "all", "untied")]
    expected = dict(zip(map(repr, entries), server.world.expected(entries), strict=True))
    later = {prompt: server.world.says("activated", prompt) for prompt in {tuple(prompt) for _, prompt in entries}}

    def one(number: int) -> None:
        choose = random.Random(number)
        entry, kind = choose.choice(entries), choose.randrange(20)
        if kind < 2:
            assert server.post("/v1/completions", {"model": f"bad{number}", "prompt": [9]})[0] == 404
        elif kind == 2:
            smuggled = {"model": "tied", "prompt": [9], "max_tokens": 1, "vllm_xargs": {"reft": f"bad{number}"}}
            assert server.post("/v1/completions", smuggled)[0] == 400
        elif kind < 5:
            stream = server.client.completions.create(
                model=entry[0] or server.base, prompt=entry[1], max_tokens=50, stream=True
            )
            next(iter(stream))
            stream.close()
        elif kind == 5:
            load = {"reft_name": f"soak{number}", "reft_path": str(server.world.adapters["activated"])}
            assert server.post("/v1/load_reft_adapter", load)[0] == 200
            assert server.says(f"soak{number}", entry[1]) == later[tuple(entry[1])]
            assert server.post("/v1/unload_reft_adapter", {"reft_name": f"soak{number}"})[0] == 200
        else:
            assert server.says(*entry) == expected[repr(entry)]

    began, held = time.monotonic(), []
    for quarter in range(4):
        with ThreadPoolExecutor(8) as pool:
            for done in pool.map(one, range(quarter * count // 4, (quarter + 1) * count // 4)):
                assert done is None
        held.append(server.memory())
    seconds, megabytes = time.monotonic() - began, [size >> 20 for size in held]
    logging.getLogger(__name__).info("%d requests in %.0f s; MB after each quarter: %s", count, seconds, megabytes)
    assert held[3] - held[0] < 64 << 20
    assert {model.id for model in server.client.models.list()} == {server.base, "tied", "all", "untied"}
