"""`adapter_names` inside transforms of `torch.func`: the derivatives are those of each row run alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig

IDS = token_ids(3, 6)
ROWS = ["default", "__base__", "second"]
Tensors = dict[str, Tensor]


@pytest.fixture
def model() -> PeftModel:
    base = base_model("llama", dtype=torch.float64)
    base.set_attn_implementation("eager")
    made = reft_model("llama", base=base, positions="f2+l1", init_weights=False).double()
    made.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="f2+l1", init_weights=False))
    return made.double().eval()


def of_adapters(model: PeftModel) -> Tensors:
    return {name: one.detach().clone() for name, one in model.named_parameters() if ".reft." in name}


def score(model: PeftModel, parameters: Tensors, ids: Tensor, names: list[str]) -> Tensor:
    arguments: dict[str, Any] = {"input_ids": ids, "adapter_names": names, "use_cache": False}
    total: Tensor = functional_call(model, parameters, (), arguments).logits.square().mean((1, 2)).sum()
    return total


def row_by_row(model: PeftModel, parameters: Tensors) -> Tensor:
    """The same without `adapter_names`: each row in a call of its own, with its adapter set for all."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, name in zip(IDS, ROWS, strict=True):
        arguments = {"input_ids": ids[None], "use_cache": False}
        if name == "__base__":
            with model.disable_adapter():
                total = total + functional_call(model, parameters, (), arguments).logits.square().mean()
        else:
            model.set_adapter(name)
            total = total + functional_call(model, parameters, (), arguments).logits.square().mean()
    return total


@pytest.mark.parametrize("derive", [grad, jacrev], ids=["grad", "jacrev"])
def test_rows_of_two_stacked_adapters_are_derived(model: PeftModel, derive: Callable[..., Any]) -> None:
    parameters = of_adapters(model)
    leaves = {name: one.clone().requires_grad_() for name, one in parameters.items()}
    expected = torch.autograd.grad(row_by_row(model, leaves), list(leaves.values()))
    found = derive(lambda given: score(model, given, IDS, ROWS))(parameters)
    assert any(one.abs().max() > 1e-6 for one in expected)
    for name, one in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], one, rtol=1e-8, atol=1e-10)


def test_forward_mode_agrees_with_reverse_mode(model: PeftModel) -> None:
    parameters = of_adapters(model)
    generator = torch.Generator().manual_seed(4)
    along = {
        name: torch.randn(one.shape, generator=generator, dtype=torch.float64) for name, one in parameters.items()
    }
    leaves = {name: one.clone().requires_grad_() for name, one in parameters.items()}
    slopes = torch.autograd.grad(row_by_row(model, leaves), list(leaves.values()))
    expected = sum((one * along[name]).sum() for name, one in zip(parameters, slopes, strict=True))
    _, found = jvp(lambda given: score(model, given, IDS, ROWS), (parameters,), (along,))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_batches_of_rows_are_vmapped(model: PeftModel) -> None:
    parameters = of_adapters(model)
    batches = torch.stack([IDS, IDS.flip(1)])
    found = vmap(lambda ids: score(model, parameters, ids, ROWS))(batches)
    expected = torch.stack([score(model, parameters, ids, ROWS) for ids in batches])
    torch.testing.assert_close(found, expected)


def test_rows_are_stacked_again_afterwards_and_give_the_same(model: PeftModel) -> None:
    with torch.no_grad():
        before = model(IDS, adapter_names=ROWS).logits
        grad(lambda given: score(model, given, IDS, ROWS))(of_adapters(model))
        after = model(IDS, adapter_names=ROWS).logits
    assert torch.equal(before, after)


def test_other_parameters_for_one_call_are_those_that_edit(model: PeftModel) -> None:
    """`functional_call` without a transform, after the adapters were stacked."""
    parameters = {name: one * 1.5 for name, one in of_adapters(model).items()}
    with torch.no_grad():
        before = score(model, of_adapters(model), IDS, ROWS)
        found = score(model, parameters, IDS, ROWS)
        after = score(model, of_adapters(model), IDS, ROWS)
        expected = row_by_row(model, parameters)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(before, after)
    assert not torch.allclose(found, before)
