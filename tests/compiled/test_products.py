"""A base compiled in place is given thin products: its graph makes no R, and follows what the adapter becomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx
from torch.testing import assert_close

from contract.tiny import token_ids
from peft_reft import scale_adapter

from .counting import fresh_compiler, reft


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


class Graphs:
    """A backend that runs graphs as they are, and keeps the names of what they call."""

    def __init__(self) -> None:
        self.called: list[set[str]] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        inside = [part for part in graph.modules() if isinstance(part, fx.GraphModule)]
        self.called.append({str(node.target) for part in inside for node in part.graph.nodes})
        return graph

    @property
    def makes_rotation(self) -> bool:
        return any("linalg" in name for called in self.called for name in called)


def compiled(kind: str, **fields: Any) -> tuple[Any, Any, Graphs]:
    """A model, the same compiled in place, and the graphs."""
    graphs = Graphs()
    model, plain = reft("llama", intervention=kind, **fields), reft("llama", intervention=kind, **fields)
    model.get_base_model().compile(backend=graphs)
    return plain, model, graphs


@torch.no_grad()
@pytest.mark.parametrize("kind", ["loreft", "direft_orthogonal", "consreft"])
def test_a_prefill_makes_no_rotation(kind: str) -> None:
    plain, model, graphs = compiled(kind, positions="f1+l2")
    for length in (6, 7, 9):
        ids = token_ids(2, length)
        assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert graphs.called
    assert not graphs.makes_rotation


@torch.no_grad()
def test_what_changes_between_two_calls_is_followed_without_another_graph() -> None:
    plain, model, graphs = compiled("loreft", positions="f1+l2")
    ids = token_ids(2, 6)
    before = model(input_ids=ids).logits
    known = len(graphs.called)
    for changed in (plain, model):
        for name, parameter in changed.named_parameters():
            if ".reft." in name:
                parameter.data.mul_(1.5)
    after = model(input_ids=ids).logits
    assert not torch.equal(after, before)
    assert_close(after, plain(input_ids=ids).logits)
    for changed in (plain, model):
        scale_adapter(changed, "default", 0.5)
    assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert len(graphs.called) == known


def test_a_training_step_makes_it_in_the_graph() -> None:
    plain, model, graphs = compiled("loreft", positions="f1+l2")
    ids = token_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100
    losses = [one.train()(input_ids=ids, labels=labels).loss for one in (plain, model)]
    assert_close(losses[1], losses[0])
    losses[1].backward()
    assert graphs.makes_rotation
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
