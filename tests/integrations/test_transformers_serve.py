"""`peft-reft serve --engine transformers`: each request is answered as the adapter that it names generates alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from runtime.folders import numbers, saved_base, spoken
from runtime.stepwise import greedy
from runtime.test_serve import wait_for
from transformers.utils.import_utils import is_serve_available

from contract.tiny import reft_model
from peft_reft.hub_format.errors import ConfigError, ReftError
from peft_reft.integrations.cli.app import run
from peft_reft.integrations.transformers_serve import serve_with

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="transformers serve needs fastapi and openai: pip install 'peft-reft[serving]'"
)

PROGRAM = "import sys; from peft_reft.integrations.cli import main; sys.exit(main())"
STEPS = 6
SPECS = {"ends": "f2+l2", "start": "f3", "said": "all"}
BATCHING = ("--continuous-batching", "--cb-block-size", "4", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "8")
CHATS = ("w9 w8 w7", "w20 w21 w22 w23 w24 w25 w26 w27", "w33")


@dataclass(frozen=True)
class Served:
    """A base, adapters on it, and the address of a server that has them."""

    base: Path
    adapters: dict[str, Path]
    address: str = ""

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        asked = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def chat(self, model: str, content: str, **more: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": content}]
        asked = {"messages": messages, "max_tokens": STEPS, "temperature": 0, **more}
        return self.post("/v1/chat/completions", model=model, **asked)

    def says(self, name: str, content: str) -> list[int]:
        """What decoding step by step says to a chat, with one adapter or with none."""
        prompt = torch.tensor([4, *numbers(content), 5])
        model: Any = hf.AutoModelForCausalLM.from_pretrained(self.base)
        if name == str(self.base):
            ids = model.eval().generate(input_ids=prompt[None], max_new_tokens=STEPS, do_sample=False)
            return spoken(ids[0, len(prompt) :].tolist())
        model = PeftModel.from_pretrained(model, self.adapters[name]).eval()
        return spoken(greedy(model, SPECS[name], prompt, STEPS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("many")
    base = saved_base(folder / "base")
    for seed, (name, spec) in enumerate(SPECS.items()):
        loaded = hf.AutoModelForCausalLM.from_pretrained(base)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reft_model("llama", base=loaded, positions=spec).save_pretrained(folder / name)
    return Served(base, {name: folder / name for name in SPECS})


@pytest.fixture(scope="module", params=["one by one", "continuous batching"])
def server(request: Any, saved: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = BATCHING if request.param == "continuous batching" else ()
    adapters = [f"--adapter={name}={path}" for name, path in saved.adapters.items()]
    log = tmp_path_factory.mktemp("log") / "server.log"
    words = ["-c", PROGRAM, "serve", str(saved.base), "--engine", "transformers", *adapters]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, *words, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *flags],
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=log.parent,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield Served(saved.base, saved.adapters, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_every_model_answers_as_itself(server: Served) -> None:
    """All at once: with continuous batching they share forwards, and prompts that begin alike."""
    asked = [(name, content) for content in CHATS for name in (str(server.base), *SPECS)] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda entry: server.chat(*entry), asked))
    said = {}
    for entry, (status, body) in zip(asked, answers, strict=True):
        assert status == 200, body
        answer = json.loads(body)
        found = numbers(answer["choices"][0]["message"]["content"])
        assert found == said.setdefault(entry, server.says(*entry)), entry
        if entry[0] in SPECS:
            assert answer["model"] == entry[0]
    assert len({str(said[name, CHATS[0]]) for name in (str(server.base), *SPECS)}) == len(SPECS) + 1


def test_a_stream_and_a_completion(server: Served) -> None:
    _, body = server.chat("ends", CHATS[1], stream=True)
    parts = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])
    assert numbers(text) == server.says("ends", CHATS[1])
    status, body = server.post("/v1/completions", model="start", prompt="w4 w9 w8 w5", max_tokens=STEPS, temperature=0)
    assert status == 200
    assert numbers(json.loads(body)["choices"][0]["text"]) == server.says("start", "w9 w8")


def test_models_are_listed(server: Served) -> None:
    with urllib.request.urlopen(f"{server.address}/v1/models", timeout=60) as answer:
        listed = [entry["id"] for entry in json.load(answer)["data"]]
    assert listed == [str(server.base), *SPECS]
    status, body = server.post("/load_model", model="ends")
    assert status == 200
    assert b'"ready"' in body


@pytest.mark.parametrize(
    "model", ["nobody", "../ends", "ends/../start", "a" * 5000, "__base__", "ends@main"], ids=ascii
)
def test_a_name_that_is_not_served_is_not_found(server: Served, model: str) -> None:
    status, body = server.chat(model, CHATS[0])
    assert status == 404, body
    assert len(body) < 500
    assert server.chat("ends", CHATS[0])[0] == 200


def test_what_cannot_be_served_is_refused_at_the_start(saved: Served, tmp_path: Path, capsys: Any) -> None:
    ends = saved.adapters["ends"]
    with pytest.raises(ConfigError, match="--compile"):
        serve_with(str(saved.base), {"ends": str(ends)}, ["--compile"])
    with pytest.raises(ReftError, match="nowhere"):
        serve_with(str(saved.base), {"ends": str(tmp_path / "nowhere")}, [])
    for option in ("--max-refts=3", "--allow-runtime-loading"):
        assert run(["serve", str(saved.base), "--engine=transformers", f"--adapter=a={ends}", option]) == 1
        assert option.partition("=")[0] in capsys.readouterr().err
    assert run(["serve", str(saved.base), "--engine=transformers", f"--adapter=a={ends}", "--no-such-flag"]) == 2


def test_a_bundle_is_refused(saved: Served, tmp_path: Path) -> None:
    from peft import LoraConfig

    from peft_reft import MixedReftModel, ReftConfig

    base = hf.AutoModelForCausalLM.from_pretrained(saved.base)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    MixedReftModel.from_configs(base, {"default": lora, "edit": ReftConfig("CAUSAL_LM")}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="bundle"):
        serve_with(str(saved.base), {"both": str(tmp_path)}, [])
