"""A plan kept for a shape is the one that would be worked out, whatever came before; it holds no call's data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from runtime.test_cost import Calls

SPECS = ["f2+l3", "p[1:-1]", "prompt", "all-f1", "g[0:2]+l1", "f9+l9"]


def decoder(positions: str, **settings: Any) -> Any:
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False, **settings)
    return get_peft_model(base_model("llama"), config).eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor, **stated: Any) -> Tensor:
    return model(input_ids=ids, **stated).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", SPECS)
def test_unpadded_prompts_are_edited_as_with_stated_lengths(positions: str, tied: bool) -> None:
    model = decoder(positions, share_weights=tied)
    for seed, (rows, length) in enumerate([(2, 6), (3, 4), (2, 6), (1, 9), (2, 6)]):
        ids = token_ids(rows, length, seed=seed)
        expected = logits(model, ids, prompt_lengths=torch.full((rows,), length))
        assert torch.equal(logits(model, ids), expected)
        assert torch.equal(logits(model, ids, attention_mask=torch.ones_like(ids)), expected)


@pytest.mark.parametrize("between", ["padding", "labels", "position_ids", "other adapter", "disabled"])
def test_what_comes_between_two_calls_of_one_shape_has_its_own_plan(between: str) -> None:
    model, ids = decoder("f1+l2"), token_ids(2, 6)
    model.add_adapter("other", ReftConfig(task_type="CAUSAL_LM", positions="p[2:3]", init_weights=False))
    whole = logits(model, ids)
    fresh = copy.deepcopy(model)
    fresh.add_adapter("new", ReftConfig(task_type="CAUSAL_LM"))  # whose activity is made anew
    given: dict[str, Any] = {}
    if between == "padding":
        given["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    elif between == "labels":
        given["labels"] = torch.where(torch.arange(6) < 3, -100, ids)
    elif between == "position_ids":
        given["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    elif between == "other adapter":
        for one in (model, fresh):
            one.set_adapter("other")
    else:
        with model.disable_adapter():
            assert torch.equal(logits(model, ids), logits(base_model("llama"), ids))
    assert torch.equal(logits(model, ids, **given), logits(fresh, ids, **given))
    assert between == "disabled" or not torch.equal(logits(model, ids, **given), whole)
    model.set_adapter("default")
    assert torch.equal(logits(model, ids), whole)


def test_a_plan_of_inference_mode_serves_a_backward_pass() -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    base = BertForSequenceClassification(BertConfig(vocab_size=64, **settings))
    model = get_peft_model(base, ReftConfig(task_type="SEQ_CLS", positions="f1+l1", init_weights=False)).eval()
    ids = token_ids(2, 6)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "reft" in name]
    assert gradients
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients)


def test_fake_tensors_are_not_kept() -> None:
    model, ids = decoder("f1+l2"), token_ids(2, 6)
    with suppress(DynamicOutputShapeException), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(input_ids=mode.from_tensor(ids))
    assert torch.equal(logits(model, ids), logits(model, ids, prompt_lengths=torch.tensor([6, 6])))


def test_the_plan_of_a_shape_costs_nothing_the_second_time() -> None:
    def counted(prepare: Callable[[Any], Any], **given: Tensor) -> int:
        model = decoder("f1+l2")
        model(input_ids=ids, **given)
        with torch.no_grad(), Calls() as calls:
            prepare(model)(input_ids=ids, **given)
        return calls.counted["cumsum"] + calls.counted["nonzero"]

    ids = token_ids(2, 6)
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    of_base = counted(lambda model: model.get_base_model(), attention_mask=padded)
    assert of_base > 0
    assert counted(lambda model: model) == 0
    assert counted(lambda model: model, attention_mask=torch.ones_like(ids)) == 0


def test_a_mask_that_is_changed_after_a_call_does_not_change_the_next_one() -> None:
    model, ids = decoder("all"), token_ids(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = logits(model, ids, attention_mask=mask)
    mask[:, :3] = False
    assert torch.equal(logits(model, ids), expected)
