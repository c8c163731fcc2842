"""Greedy tokens of ReFT and base requests in one batch are those of `PeftModel.generate`, however the engine runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import STEPS, World
from .engines import ask, counted, engine, outputs

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "chunked": {"max_num_batched_tokens": 32},
    "few slots": {"max_refts": 2},
    "preempted": {"num_gpu_blocks_override": 9, "max_num_batched_tokens": 64},
    "compiled": {"enforce_eager": False},
    "drafts": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}},
}
"""Drafts come last and in processes of their own: they bring numba, after which vLLM starts no engine in a process."""
HAPPENED = {
    "eager": "vllm:prefix_cache_hits",
    "preempted": "vllm:num_preemptions",
    "drafts": "vllm:spec_decode_num_accepted_tokens",
}
"""Mode → the counter that shows that what the mode is for took place."""


@pytest.fixture(scope="module", params=MODES)
def running(request: Any, llama: World) -> Iterator[tuple[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "drafts":
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        with engine(llama.base, llama.adapters, **MODES[request.param]) as llm:
            yield request.param, llm


def test_every_adapter_and_the_base_in_one_batch(running: tuple[str, Any], llama: World) -> None:
    mode, llm = running
    asked = llama.every()
    expected = llama.expected(asked)
    assert ask(llm, asked, STEPS) == expected
    assert ask(llm, asked[::-1], STEPS) == expected[::-1]  # with whatever the first pass left in the cache
    if mode in HAPPENED:
        assert counted(llm, HAPPENED[mode]) > 0
    if mode == "few slots":
        assert llm.reft_report()["slot_copies"] > llm.reft_report()["slots"]


def test_edits_matter(llama: World) -> None:
    """Each adapter says something else than the base somewhere, so equal tokens mean equal edits."""
    asked = llama.every()
    said = dict(zip(((name, tuple(prompt)) for name, prompt in asked), llama.expected(asked), strict=True))
    for name in llama.adapters:
        assert any(said[name, prompt] != said[None, prompt] for _, prompt in said if (name, prompt) in said), name


def test_several_samples_of_one_prompt_are_edited_alike(running: tuple[str, Any], llama: World) -> None:
    mode, llm = running
    if mode == "drafts":
        pytest.skip("vLLM 0.32's own sampler fails on top_k in a step that verifies no draft")
    asked = [(name, prompt) for name, prompt in llama.every() if name in (None, "tied", "all")][:9]
    for output, (name, prompt) in zip(outputs(llm, asked, STEPS, n=2, temperature=1.0, top_k=1), asked, strict=True):
        for sample in output.outputs:
            assert list(sample.token_ids) == llama.says(name, tuple(prompt))


def test_log_probabilities_are_those_of_the_edited_model(running: tuple[str, Any], llama: World) -> None:
    """Of the prompt too, for which vLLM computes it anew."""
    import torch
    from peft import PeftModel

    from . import bases

    _, llm = running
    prompt = llama.every()[-1][1]
    found = outputs(llm, [("tied", prompt)], 1, logprobs=3, prompt_logprobs=0)[0]
    model = PeftModel.from_pretrained(bases.loaded(llama.base), llama.adapters["tied"]).eval()
    with torch.no_grad():
        lengths = torch.tensor([len(prompt)])
        scores = model(input_ids=torch.tensor([prompt]), prompt_lengths=lengths).logits[0].log_softmax(-1)
    for token, entry in found.outputs[0].logprobs[0].items():
        assert entry.logprob == pytest.approx(float(scores[-1, token]), abs=1e-3)
    for place, (token, given) in enumerate(zip(prompt[1:], found.prompt_logprobs[1:], strict=True)):
        assert given[token].logprob == pytest.approx(float(scores[place, token]), abs=1e-3)
