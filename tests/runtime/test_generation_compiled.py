"""A static cache with a compiled forward, as transformers runs it by itself where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers as hf

from .test_generation import batch, expected_for, generated, model_for, rows_of


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(spec: str, backend: str) -> None:
    """A left-padded batch, then one of its rows alone on the same compiled forward: sizes become symbols."""
    how = hf.CompileConfig(backend=backend, mode="default" if backend == "inductor" else None, fullgraph=True)
    how._compile_all_devices = True
    model, given = model_for("llama", spec), batch()
    settings = {"cache_implementation": "static", "compile_config": how}
    assert generated(model, given, **settings) == expected_for("llama", spec)
    alone = rows_of(given["input_ids"], given["attention_mask"])[1]
    assert generated(model, {"input_ids": alone[None]}, **settings) == expected_for("llama", spec)[1:2]


@pytest.mark.parametrize("spec", ["f2+l2", "all-f1"])
def test_one_graph_gives_the_tokens_of_stepwise_decoding(spec: str) -> None:
    check_compiled(spec, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["f2+l2", "all-f1", "g[:2]"])
def test_compiled_code_gives_the_tokens_of_stepwise_decoding(spec: str) -> None:
    check_compiled(spec, "inductor")
