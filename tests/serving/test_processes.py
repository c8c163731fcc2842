"""Engines in processes of their own: one worker, two that share every matrix, and LoRAs beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import bases
from .conftest import STEPS, World, world
from .engines import ask, engine

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def test_an_engine_and_a_worker_of_their_own(apart: None, llama: World) -> None:
    with engine(llama.base, llama.adapters, max_num_batched_tokens=32) as llm:
        asked = llama.every()
        assert ask(llm, asked, STEPS) == llama.expected(asked)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Heads that two processes can share."""
    kinds = ("tied", "untied", "all", "activated")
    return world(tmp_path_factory.mktemp("split"), "llama", kinds, num_attention_heads=4, num_key_value_heads=2)


def test_two_processes_that_share_every_matrix(apart: None, split: World) -> None:
    with engine(split.base, split.adapters, tensor_parallel_size=2) as llm:
        asked = split.every()
        assert ask(llm, asked, STEPS) == split.expected(asked)


@pytest.fixture(scope="module")
def beside(llama: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    bundle = bases.saved_bundle(tmp_path_factory.mktemp("bundle") / "both", llama.base, "f2+l2")
    with engine(llama.base, {**llama.adapters, "both": bundle}, enable_lora=True, max_lora_rank=8) as llm:
        yield llm, bundle


def test_a_bundle_is_one_name_for_a_lora_and_a_reft(beside: tuple[Any, Path], llama: World) -> None:
    llm, bundle = beside
    prompts = [prompt for name, prompt in llama.every() if name is None]
    asked = [(name, prompt) for prompt in prompts for name in ("both", None, "tied")]
    expected = [
        bases.greedy(llama.base, bundle, prompt, STEPS) if name == "both" else llama.says(name, tuple(prompt))
        for name, prompt in asked
    ]
    assert ask(llm, asked, STEPS) == expected


def test_a_lora_request_stands_beside_a_reft_request(beside: tuple[Any, Path], llama: World) -> None:
    """One batch: a LoRA of vLLM's alone, and LoRA and ReFT that were not saved together."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from peft_reft import MixedReftModel
    from peft_reft.integrations.vllm import ReftRequest

    llm, bundle = beside
    prompt = llama.every()[0][1]
    lora = LoRARequest("mine", 1, str(bundle))
    edit = "from_bundle"
    llm.load_reft_adapter(edit, str(bundle / "reft" / "edit"))
    settings = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    found = llm.generate(
        [{"prompt_token_ids": prompt}] * 3,
        settings,
        lora_request=[lora, lora, None],
        reft_request=[None, ReftRequest(edit), ReftRequest(edit)],
        use_tqdm=False,
    )
    model = MixedReftModel.from_pretrained(bases.loaded(llama.base), bundle).eval()
    for output, chosen in zip(found, (["default"], ["default", "edit"], ["edit"]), strict=True):
        model.set_adapter(chosen)
        assert list(output.outputs[0].token_ids) == bases.said(model, prompt, STEPS)
