"""Prefix caching: blocks are shared where they hold what a request asks for, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import bases
from .conftest import STEPS, World
from .engines import ask, counted, engine

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

LONG = bases.prompts([100], seed=3)[0]


@pytest.fixture(scope="module")
def llm(llama: World) -> Iterator[Any]:
    with engine(llama.base, llama.adapters) as made:
        yield made


def hits(llm: Any, llama: World, name: str | None, prompt: list[int], **how: Any) -> float:
    """Tokens of a prompt that were found in the cache, after its answer was found right."""
    before = counted(llm, "vllm:prefix_cache_hits")
    assert ask(llm, [(name, prompt)], STEPS, **how) == llama.expected([(name, prompt)])
    return counted(llm, "vllm:prefix_cache_hits") - before


@pytest.fixture(autouse=True)
def empty(llm: Any) -> None:
    assert llm.reset_prefix_cache()


@pytest.mark.parametrize("name", [None, "tied", "all", "one_layer"])
def test_equal_requests_share(llm: Any, llama: World, name: str | None) -> None:
    assert hits(llm, llama, name, LONG) == 0
    assert hits(llm, llama, name, LONG) == 96


def test_no_adapter_reads_what_another_or_the_base_computed(llm: Any, llama: World) -> None:
    for name in (None, *llama.adapters, None):
        found = hits(llm, llama, name, LONG)
        assert found == 0 or name is None
    assert hits(llm, llama, None, LONG) == 96


def test_a_window_from_the_start_shares_whatever_follows(llm: Any, llama: World) -> None:
    """`p[1:4]` and `all` read alike in prompts of any length; `f3+l2` does not."""
    longer = [*LONG, *LONG[:9]]
    for name, shared in (("one_layer", 96), ("all", 96), ("tied", 0), (None, 96)):
        assert hits(llm, llama, name, LONG) == 0
        assert hits(llm, llama, name, longer) == shared


def test_a_conversation_goes_on_in_what_was_generated(llm: Any, llama: World) -> None:
    """The answer becomes prompt: with `all` its blocks are as edited as a prompt's, with `f<n>` neither is."""
    short = LONG[:30]
    for name, shared in (("all", 32), ("one_layer", 32), ("tied", 0)):
        hits(llm, llama, name, short)
        answered = [*short, *llama.says(name, tuple(short)), 11, 12]
        assert hits(llm, llama, name, answered) == shared


def test_a_salt_of_the_users_counts_too(llm: Any, llama: World) -> None:
    """Two tenants of one adapter share nothing, and nobody can name another's blocks."""
    from vllm import SamplingParams

    from peft_reft.integrations.vllm import ReftRequest

    settings = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    key = llm.reft.entry("all").key

    def found(salt: str | None, name: str | None) -> float:
        before = counted(llm, "vllm:prefix_cache_hits")
        prompt = {"prompt_token_ids": LONG, **({} if salt is None else {"cache_salt": salt})}
        request = None if name is None else ReftRequest(name)
        output = llm.generate(prompt, settings, reft_request=request, use_tqdm=False)[0]
        assert list(output.outputs[0].token_ids) == llama.says(name, tuple(LONG))
        return counted(llm, "vllm:prefix_cache_hits") - before

    assert found("one", "all") == 0
    assert found("two", "all") == 0
    assert found("one", "all") == 96
    assert found(None, "all") == 0
    assert found(f"reft:{key}:", None) == 0
    assert found(f"reft:{key}:one", None) == 0


def test_an_adapter_that_was_replaced_leaves_no_blocks(llm: Any, llama: World) -> None:
    llm.load_reft_adapter("changing", str(llama.adapters["all"]))
    first = ask(llm, [("changing", LONG)], STEPS)
    llm.load_reft_adapter("changing", str(llama.adapters["tied"]), replace=True)
    second = ask(llm, [("changing", LONG)], STEPS)
    llm.unload_reft_adapter("changing")
    assert first == llama.expected([("all", LONG)])
    assert second == llama.expected([("tied", LONG)])
    assert llm.reft_report()["adapters"] == len(llama.adapters)
