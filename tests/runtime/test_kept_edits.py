"""What is kept from one prefill to the next is what a model that keeps nothing computes, whatever changed between."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig, scale_adapter
from peft_reft.lookup import reft_layers, units_of


def config(layers: list[int] | None = None, kind: str = "loreft") -> ReftConfig:
    return ReftConfig(
        task_type="CAUSAL_LM", positions="f1+l2", intervention=kind, layers_to_transform=layers, init_weights=False
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=token_ids(2, 6)).logits


def fresh(model: Any) -> Tensor:
    """Of a copy, which keeps nothing."""
    return logits(copy.deepcopy(model))


def units(model: Any, name: str = "default") -> list[Any]:
    return list(units_of(reft_layers(model)[0].state, name))


def write_past_the_version(model: Any) -> None:
    units(model)[0].weight.data[0, 0] += 1


def write(model: Any) -> None:
    with torch.no_grad():
        units(model)[-1].bias += 1


def replace(model: Any) -> None:
    unit = units(model)[0]
    unit.bias = torch.nn.Parameter(unit.bias.detach() + 1)


def scale(model: Any) -> None:
    scale_adapter(model, "default", 0.5)


def scale_one_site(model: Any) -> None:
    reft_layers(model)[0].scaling["default"] = 0.5


def choose_rows(model: Any) -> None:
    units(model)[1].rows = [0]


def hook(model: Any) -> None:
    units(model)[0].register_forward_hook(lambda unit, args, delta: delta * 2)


def widen(model: Any) -> None:
    model.double()


CHANGES = [write_past_the_version, write, replace, scale, scale_one_site, choose_rows, hook, widen]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_a_change_between_two_prefills_is_seen(change: Callable[[Any], None], kind: str) -> None:
    model = get_peft_model(base_model("llama"), config(kind=kind)).eval()
    before = logits(model)
    assert torch.equal(logits(model), before)
    change(model)
    after = logits(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(model))
    assert torch.equal(logits(model), after)


@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_adapters_of_equal_values_at_other_layers_are_not_taken_for_each_other(kind: str) -> None:
    model = get_peft_model(base_model("llama"), config([0, 1], kind)).eval()
    model.add_adapter("other", config([0, 2], kind))
    for one, same in zip(units(model), units(model, "other"), strict=True):
        same.load_state_dict(one.state_dict())
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = fresh(model)
    assert not torch.equal(*expected.values())
    for name in ("default", "other", "default", "default", "other"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])


def kept(model: Any) -> Any:
    runtime = reft_layers(model)[0].runtime
    return runtime.ready.kept, runtime.operands.last


def test_a_forward_with_gradients_keeps_no_graph() -> None:
    ids = token_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100
    decoder = get_peft_model(base_model("llama"), config())
    decoder.train()(input_ids=ids, labels=labels).loss.backward()
    assert kept(decoder) == (None, ([], {}))
    decoder.eval()(input_ids=ids)
    assert kept(decoder) == (None, ([], {}))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes))
    classifier = get_peft_model(base, ReftConfig(task_type="SEQ_CLS", positions="f1+l2"))
    classifier.train()(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    assert kept(classifier) == (None, ([], {}))


@torch.no_grad()
@pytest.mark.parametrize("backend", [None, "eager"])
def test_what_stands_in_the_place_of_forward_may_bring_the_parameters(backend: str | None) -> None:
    """As accelerate's offloading does; the first edit sees what they are then."""
    model = get_peft_model(base_model("llama"), config()).eval()
    base = model.get_base_model()
    own = base.forward

    def shifted(by: float) -> None:
        for unit in units(model):
            unit.bias.data.add_(by)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        shifted(1.0)
        try:
            return own(*args, **kwargs)
        finally:
            shifted(-1.0)

    before = logits(model)
    shifted(1.0)
    expected = logits(model)
    shifted(-1.0)
    base.forward = functools.update_wrapper(wrapped, own)
    if backend is not None:
        base.compile(backend=backend)
    assert not torch.allclose(expected, before)
    assert_close(logits(model), expected)
    assert_close(logits(model), expected)


@torch.no_grad()
@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_states_of_another_half_type_than_autocast_s(lower: torch.dtype, autocast: torch.dtype) -> None:
    """A quantized base may give such; with a holder more, so that the rows are not written in place."""
    model = get_peft_model(base_model("llama"), config()).eval()
    block = model.get_base_model().model.layers[0]
    seen = []
    block.register_forward_hook(lambda module, args, output: output.to(lower))
    block._forward_hooks.move_to_end(next(reversed(block._forward_hooks)), last=False)
    block.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.autocast("cpu", dtype=autocast):
        logits(model)
    assert seen[0].dtype == lower
