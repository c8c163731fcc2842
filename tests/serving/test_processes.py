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
    """Batches of it, and of ReFTs without a LoRA, one after another: see the test after the next."""
    llm, bundle = beside
    prompts = [prompt for name, prompt in llama.every() if name is None]
    expected = [bases.greedy(llama.base, bundle, prompt, STEPS) for prompt in prompts]
    assert ask(llm, [("both", prompt) for prompt in prompts], STEPS) == expected
    for name in (None, "tied", "all"):
        asked = [(name, prompt) for prompt in prompts]
        assert ask(llm, asked, STEPS) == llama.expected(asked)


def test_a_lora_request_stands_beside_a_reft_request(beside: tuple[Any, Path], llama: World) -> None:
    """One batch: a LoRA of vLLM's alone, and LoRA and ReFT that were not saved together; then the ReFT alone."""
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
    asked = {"prompt_token_ids": prompt}
    both = llm.generate(
        [asked, asked], settings, lora_request=lora, reft_request=[None, ReftRequest(edit)], use_tqdm=False
    )
    alone = llm.generate(asked, settings, reft_request=ReftRequest(edit), use_tqdm=False)
    model = MixedReftModel.from_pretrained(bases.loaded(llama.base), bundle).eval()
    for output, chosen in zip([*both, *alone], (["default"], ["default", "edit"], ["edit"]), strict=True):
        model.set_adapter(chosen)
        assert list(output.outputs[0].token_ids) == bases.said(model, prompt, STEPS)


def test_vllm_itself_mixes_loras_up_with_the_base_on_the_cpu(beside: tuple[Any, Path], llama: World) -> None:
    """Nothing of ours: a request without a LoRA, in one batch with one that has it. Where it passes, test the mix."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    llm, bundle = beside
    prompts = [prompt for name, prompt in llama.every() if name is None]
    lora = LoRARequest("mine", 1, str(bundle))
    found = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(2)],
        SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True),
        lora_request=[lora, None] * len(prompts),
        use_tqdm=False,
    )
    said = [list(output.outputs[0].token_ids) for output in found[1::2]]
    assert said != llama.expected([(None, prompt) for prompt in prompts])
