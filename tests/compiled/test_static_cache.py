"""`generate` with a static cache whose forward is compiled: the base model's own number of graphs, the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import transformers as hf
from torch import nn

from peft_reft import ReftConfig

from .counting import base, batch, counting_backend, fresh_compiler, reft

PROMPTS = (batch(2, 8, left=3), batch(2, 6), batch(2, 9, left=1))
LENGTH = 14


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


def generated(model: nn.Module, **how: Any) -> list[list[list[int]]]:
    settings = {"max_length": LENGTH, "min_length": LENGTH, "do_sample": False, **how}
    return [model.generate(**given, **settings).tolist() for given in PROMPTS]


def compiled(model: nn.Module, backend: Callable[..., Any]) -> list[list[list[int]]]:
    how = hf.CompileConfig(backend=backend, mode=None, fullgraph=True)
    how._compile_all_devices = True
    return generated(model, cache_implementation="static", compile_config=how)


@cache
def graphs_of_the_base() -> int:
    backend, graphs = counting_backend()
    with fresh_compiler():
        compiled(base("llama"), backend)
    return len(graphs)


def test_decoding_keeps_the_graphs_of_the_base_model_whatever_adapter_is_active() -> None:
    model = reft("llama", positions="f2+l2")
    model.add_adapter("b", ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions="p[1:3]+l1", r=2))
    model.eval()
    (backend, graphs), found = counting_backend(), {}
    for name in ("default", "b"):
        model.set_adapter(name)
        found[name] = compiled(model, backend)
        assert found[name] == generated(model)
    assert found["default"] != found["b"]
    with model.disable_adapter():
        assert compiled(model, backend) == generated(model)
    assert len(graphs) == graphs_of_the_base() > 0


@pytest.mark.parametrize("positions", ["all", pytest.param("g[:3]", marks=pytest.mark.slow)])
def test_edits_while_decoding_take_no_more_graphs_than_the_base_model(positions: str) -> None:
    model = reft("llama", positions=positions)
    backend, graphs = counting_backend()
    assert compiled(model, backend) == generated(model)
    assert len(graphs) <= graphs_of_the_base() + 1
