"""`generate_batch`, however it is set up, gives the tokens that step-by-step decoding without a cache gives."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from mixed.tiny import mixed_model
from peft import PeftModel

from contract.tiny import base_model, reft_model
from peft_reft import ReftConfig

from .batching import (
    STEPS,
    batched,
    check_tokens,
    greedily,
    prompts,
    small,
    wanted,
)
from .stepwise import greedy
from .test_generation import model_for

pytestmark = pytest.mark.usefixtures("quick_collection")


SPECS = ("f2+l2", "l4", "f3+l5", "p[1:-1]", "all", "prompt-l1", "generated", "g[1:3]", "all-f1", "f4")
OTHERS = (("gpt2", "f2+l2"), ("gpt2", "g[:2]"), ("mistral", "l4"), ("gemma2", "f2+l2"), ("qwen3", "all-f1"))


@pytest.mark.parametrize("spec", SPECS)
def test_tokens_are_those_of_stepwise_decoding(spec: str) -> None:
    check_tokens(model_for("llama", spec), spec)


@pytest.mark.parametrize(("name", "spec"), OTHERS)
def test_other_architectures(name: str, spec: str) -> None:
    """Learned positions, sliding windows."""
    model = model_for(name, spec)
    assert batched(model, prompts(), num_blocks=16) == wanted(model, spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 64, "num_blocks": 64},
        {"max_batch_tokens": 1},
        {"scheduler_type": "prefill_first"},
        {"max_requests_per_batch": 2},
        {"return_logprobs": True},
        {"allow_block_sharing": False},
    ],
)
@pytest.mark.parametrize("spec", ["f2+l2"])
def test_settings(spec: str, settings: dict[str, Any]) -> None:
    model = model_for("llama", spec)
    assert batched(model, prompts(), **settings) == wanted(model, spec)


def test_eager_attention() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2+l2")
    model.get_base_model().set_attn_implementation("eager")
    assert batched(model, prompts()) == wanted(model, "f2+l2")


@pytest.mark.parametrize("spec", ["l2", "f4"])
def test_several_returned_sequences(spec: str) -> None:
    """Forks of a request share its prompt; sampling among one candidate is greedy."""
    model = model_for("llama", spec)
    how = greedily(do_sample=True, top_k=1, num_return_sequences=3)
    found = batched(model, prompts(), how=how)
    assert found == [row for row in wanted(model, spec) for _ in range(3)]


def test_an_adapter_loaded_by_transformers(tmp_path: pathlib.Path) -> None:
    model = model_for("llama", "f2+l2")
    model.save_pretrained(tmp_path)
    base = base_model("llama", dtype=torch.float64)
    base.load_adapter(str(tmp_path))
    assert batched(base, prompts()) == wanted(model, "f2+l2")


def test_a_lora_and_a_reft() -> None:
    mixed = mixed_model(strong=True, base=base_model("llama", dtype=torch.float64)).eval()
    found = batched(mixed, prompts())
    assert found == wanted(mixed, "f2+l2")
    mixed.set_adapter("default")
    assert batched(mixed, prompts()) != found


def test_two_adapters_and_switching_them() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="g[:2]", init_weights=False))
    plain_specs = {}
    for name, spec in (("default", "f2"), ("second", "g[:2]")):
        model.set_adapter(name)
        plain_specs[name] = batched(model, prompts())
        assert plain_specs[name] == wanted(model, spec)
    with model.disable_adapter():
        assert batched(model, prompts()) not in plain_specs.values()


def test_requests_that_come_while_others_run() -> None:
    model, given = model_for("llama", "f2+l2"), prompts()
    manager = model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small())
    manager.start()
    try:
        names = [manager.add_request(prompt.tolist(), max_new_tokens=3 + n) for n, prompt in enumerate(given)]
        results: dict[str, list[int]] = {}
        while len(results) < len(given):
            result = manager.get_result(timeout=1)
            assert result is not None
            assert result.error is None
            if result.is_finished():
                results[result.request_id] = result.generated_tokens
    finally:
        manager.stop()
    for number, (name, prompt) in enumerate(zip(names, given, strict=True)):
        assert results[name] == greedy(model, "f2+l2", prompt, 3 + number)


def test_the_prompts_tell_the_specs_apart() -> None:
    """Else the comparisons above would prove nothing."""
    found = [wanted(model_for("llama", spec), spec) for spec in SPECS]
    assert len({str(tokens) for tokens in found}) == len(SPECS)
    model: PeftModel = model_for("llama", "f2+l2")
    with model.disable_adapter():
        assert batched(model, prompts()) not in found


@pytest.mark.parametrize("spec", ["tok(<|x|>)", "all-tok(<|x|>)", "f2+tok(<|x|>)"])
def test_special_tokens_are_found_by_their_id(spec: str) -> None:
    """In prompts and in what is generated: the id of one that the model says is the special token's."""
    free = greedy(model_for("llama", "g[:1]"), "g[:1]", prompts()[0], STEPS)
    stored = {"tokenizer": "sha256:" + "0" * 64, "ids": {"<|x|>": free[0]}}
    model = reft_model("llama", dtype=torch.float64, positions=spec, special_tokens=stored)
    given = [torch.cat([row, torch.tensor([free[0]]), row[:2]]) for row in prompts()]

    def stepwise(prompt: torch.Tensor) -> list[int]:
        ids = prompt
        for _ in range(STEPS):
            marked = ids == free[0]
            edited = ~marked if spec.startswith("all") else marked
            if spec.startswith("f2"):
                edited[:2] = True
            where = torch.tensor(edited.nonzero()[:, 0].tolist() or [-1])[None, None]
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False, intervention_locations=where).logits
            ids = torch.cat([ids, logits[0, -1].argmax()[None]])
        return ids[len(prompt) :].tolist()

    assert batched(model, given, num_blocks=16) == [stepwise(prompt) for prompt in given]
