"""What is kept from one prefill to the next is what a model that keeps nothing computes, whatever changed between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig, scale_adapter
from peft_reft.layer import ReftLayer


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


def units(model: Any) -> list[Any]:
    return [
        layer.unit((name, number))
        for layer in model.modules()
        if isinstance(layer, ReftLayer)
        for name, numbers in layer.units.items()
        for number in numbers
    ]


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
    next(layer for layer in model.modules() if isinstance(layer, ReftLayer)).scaling["default"] = 0.5


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
    first, other = ([unit for unit in units(model) if unit in set_of(model, name)] for name in ("default", "other"))
    for one, same in zip(first, other, strict=True):
        same.load_state_dict(one.state_dict())
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = fresh(model)
    assert not torch.equal(*expected.values())
    for name in ("default", "other", "default", "default", "other"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])


def set_of(model: Any, name: str) -> set[Any]:
    return {
        layer.unit((name, number))
        for layer in model.modules()
        if isinstance(layer, ReftLayer)
        for number in layer.units.get(name, ())
    }


def test_a_step_of_training_keeps_no_graph() -> None:
    model = get_peft_model(base_model("llama"), config())
    ids = token_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100
    model.train()(input_ids=ids, labels=labels).loss.backward()
    runtime = next(layer for layer in model.modules() if isinstance(layer, ReftLayer)).runtime
    assert runtime.ready.kept is None
    assert runtime.operands.last == ([], {})
