"""Hundreds of adapters on one model: what a call costs, and what adding one costs, does not grow with their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from contract.tiny import reft_model, token_ids
from peft_reft.interventions import Intervention

from .test_per_row import add, alone, logits, padded, several


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every unit of an adapter that some walk over the model's modules comes upon."""
    seen: list[str] = []
    walk = nn.Module.named_modules

    def named_modules(self: Intervention, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.kind)
        return walk(self, *args, **kwargs)

    monkeypatch.setattr(Intervention, "named_modules", named_modules)
    return seen


def test_no_call_walks_over_the_adapters(visits: list[str]) -> None:
    model = several(6, positions="f2+l2")
    ids, mask = padded()
    visits.clear()
    logits(model, ids, mask, adapter_names=["a1", "default", "__base__", "a3", "a1"])
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0, adapter_names=["a2"] * 5)
    logits(model, ids, mask)
    assert visits == []


@pytest.mark.parametrize("number", [2, 9])
def test_adding_an_adapter_walks_over_no_other(visits: list[str], number: int) -> None:
    model = several(number, positions="f2+l2")
    visits.clear()
    add(model, "new", seed=99, positions="f2+l2")
    among_many = len(visits)
    visits.clear()
    add(reft_model("llama", positions="f2+l2"), "new", seed=99, positions="f2+l2")
    assert 0 < among_many <= len(visits)


def test_the_others_are_as_they_were_when_one_is_added() -> None:
    model = several(3, positions="f2+l2").train()
    model.set_adapter("a1")
    names = [name for name, _ in model.named_parameters()]
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    active = model.base_model.model._reft_runtime.state.active()
    add(model, "new", seed=5, positions="f2+l2")
    after = [name for name, _ in model.named_parameters()]
    assert [name for name in after if ".new." not in name] == names
    assert set(after) - set(names)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    assert model.base_model.model._reft_runtime.state.active() == active == ["a1"]


def test_an_adapter_that_fails_to_be_added_leaves_the_others() -> None:
    model = several(3, positions="f2+l2")
    before = [name for name, _ in model.named_parameters()]
    ids, mask = padded()
    expected = logits(model, ids, mask)
    with pytest.raises(ValueError, match="is larger than the hidden size"):
        add(model, "new", seed=5, positions="f2+l2", r=1000)
    assert [name for name, _ in model.named_parameters() if ".new." not in name] == before
    assert torch.equal(logits(model, ids, mask), expected)


def test_a_batch_of_many_adapters_is_what_each_does_alone() -> None:
    model = several(40, positions="f1+l1", layers_to_transform=[1])
    names = ["default", *(f"a{number}" for number in range(1, 40))]
    ids, mask = token_ids(40, 5), torch.ones(40, 5, dtype=torch.long)
    assert_close(logits(model, ids, mask, adapter_names=names), alone(model, names, ids, mask), atol=1e-5, rtol=1e-5)
