"""A compiled decoding step calls what the base's own engine calls, and the operator, which calls nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from . import bases
from .conftest import LENGTHS, World
from .engines import SETTINGS, engine

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")


def calls_of_a_decoding_step(llm: Any, adapter: str | None) -> Counter[str]:
    """Names of the operators that one step of a full batch calls."""
    import torch
    from vllm import SamplingParams

    extra = {} if adapter is None else {"extra_args": {"reft": adapter}}
    for number, prompt in enumerate(bases.prompts(LENGTHS)):
        settings = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, **extra)
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, settings)
    for _ in range(6):  # prefill in pieces, and a first token for everyone
        llm.llm_engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        llm.llm_engine.step()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    names = [event.name for event in profiled.events()]
    return Counter(name for name in names if name.partition("::")[0] in ("aten", "peft_reft", "_C", "vllm"))


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_a_prompt_only_adapter_costs_a_decoding_step_nothing(llama: World, eager: bool) -> None:
    from vllm import LLM

    settings = {**SETTINGS, "enforce_eager": eager, "enable_prefix_caching": False}
    with engine(llama.base, {"tied": llama.adapters["tied"]}, **settings) as llm:
        calls_of_a_decoding_step(llm, "tied")
        found = calls_of_a_decoding_step(llm, "tied")
    with engine(llama.base, {}, made=LLM, **settings) as base:
        calls_of_a_decoding_step(base, None)
        expected = calls_of_a_decoding_step(base, None)
    assert found.pop("peft_reft::edit_pair") == bases.LAYERS
    assert found == expected
    assert sum(expected.values()) > 10
