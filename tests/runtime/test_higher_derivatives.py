"""Derivatives beyond the first backward: Hessian-vector products, forward mode, per-sample gradients, Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from contract.tiny import HIDDEN
from peft_reft import set_subspaces
from peft_reft.hub_format.errors import LocationError, PromptBoundaryError
from runtime.derivatives import (
    FORMULAS,
    Batch,
    Tensors,
    dense_loss,
    direction,
    edited_llama,
    loss_of,
    padded_batch,
    trained,
)

Loss = Callable[[Tensors], Tensor]


@pytest.fixture(autouse=True)
def attention_in_steps() -> Iterator[None]:
    """The CPU's fused attention has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def twice_backward(loss: Loss, parameters: Tensors, along: Tensors) -> Tensors:
    leaves = {name: one.clone().requires_grad_() for name, one in parameters.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    slope = sum((one * v).sum() for one, v in zip(first, along.values(), strict=True))
    return dict(zip(leaves, torch.autograd.grad(slope, list(leaves.values())), strict=True))


def forward_over_backward(loss: Loss, parameters: Tensors, along: Tensors) -> Tensors:
    products: Tensors = jvp(grad(loss), (parameters,), (along,))[1]
    return products


@pytest.mark.parametrize("product", [twice_backward, forward_over_backward])
@pytest.mark.parametrize("kind", FORMULAS)
def test_hessian_vector_products_are_those_of_dense_edits(kind: str, product: Callable[..., Tensors]) -> None:
    batch, model = padded_batch(), edited_llama(kind)
    parameters = trained(model)
    along = direction(parameters)
    found = product(lambda p: loss_of(model, p, batch.arguments()), parameters, along)
    wanted = product(dense_loss(kind, batch), parameters, along)
    assert all(one.any() for one in wanted.values())
    assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["loreft", "direft", "red"])
def test_the_product_of_a_plain_backward_is_that_of_dense_edits(kind: str) -> None:
    batch, model = padded_batch(), edited_llama(kind)
    parameters, own = trained(model), dict(model.named_parameters())
    along = direction(parameters)
    leaves = [own[name] for name in parameters]
    model(**batch.arguments(), use_cache=False).loss.backward(create_graph=True)
    slope = sum((leaf.grad * v).sum() for leaf, v in zip(leaves, along.values(), strict=True))  # type: ignore[operator]
    found = torch.autograd.grad(slope, leaves)  # type: ignore[arg-type]
    wanted = twice_backward(dense_loss(kind, batch), parameters, along)
    for one, other in zip(found, wanted.values(), strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", FORMULAS)
def test_forward_mode_agrees_with_differences(kind: str) -> None:
    batch, model = padded_batch(), edited_llama(kind)
    parameters = trained(model)
    along = direction(parameters)

    def loss(p: Tensors) -> Tensor:
        return loss_of(model, p, batch.arguments())

    step = 1e-3
    ahead, behind = ({n: one + s * along[n] for n, one in parameters.items()} for s in (step, -step))
    slope = jvp(loss, (parameters,), (along,))[1].double()  # transformers takes losses in float32
    assert_close(slope, (loss(ahead) - loss(behind)).double() / (2 * step), rtol=2e-3, atol=2e-3)
    assert_close(slope, sum((one * along[n]).sum() for n, one in grad(loss)(parameters).items()), rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():  # without torch.func
        dual = {n: forward_ad.make_dual(one, along[n]) for n, one in parameters.items()}
        assert_close(forward_ad.unpack_dual(loss(dual)).tangent.double(), slope, rtol=1e-5, atol=1e-6)


def per_sample(model: Any, parameters: Tensors, arguments: Tensors) -> Tensors:
    def loss(p: Tensors, one: Tensors) -> Tensor:
        return loss_of(model, p, {name: value[None] for name, value in one.items()})

    gradients: Tensors = vmap(grad(loss), in_dims=(None, 0))(parameters, arguments)
    return gradients


def one_by_one(model: Any, parameters: Tensors, arguments: Tensors) -> Tensors:
    """Plain backward passes, a sample each."""
    rows = []
    for row in range(len(arguments["input_ids"])):
        leaves = {name: one.clone().requires_grad_() for name, one in parameters.items()}
        loss = loss_of(model, leaves, {name: value[row : row + 1] for name, value in arguments.items()})
        rows.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True))
    return {name: torch.stack(held) for name, held in zip(parameters, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("kind", FORMULAS)
def test_per_sample_gradients_are_those_of_a_loop(kind: str) -> None:
    batch, model = padded_batch(), edited_llama(kind, dtype=torch.float32)
    parameters = trained(model)
    wanted = one_by_one(model, parameters, batch.arguments())
    assert all(one.any() for one in wanted.values())
    assert_close(per_sample(model, parameters, batch.arguments()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"share_weights": False},
        {"positions": "all"},
        {"positions": "prompt-f1"},
        {"positions": "p[1:3]+l1"},
        {"positions": "l2", "turns": "each"},
        {"positions": "f2+g[0:2]", "share_weights": False},
        {"component": "attention_output"},
        {"component": "head_output[1]", "r": 2},
        {"component": "block_input"},
        {"act_fn": "tanh"},
    ],
    ids=str,
)
def test_per_sample_gradients_at_other_places(config: dict[str, Any]) -> None:
    batch, model = padded_batch(), edited_llama("loreft", dtype=torch.float32, **config)
    parameters = trained(model)
    wanted = one_by_one(model, parameters, batch.arguments())
    assert_close(per_sample(model, parameters, batch.arguments()), wanted, rtol=1e-4, atol=1e-5)


def stated(batch: Batch, how: str) -> Tensors:
    """The batch with its prompts, or its edited columns, said explicitly."""
    prompt = (batch.labels == -100) & batch.real.bool()
    if how == "prompt_lengths":
        return {how: prompt.sum(1)}
    if how == "prompt_mask":
        return {how: prompt.long()}
    first = prompt.long().argmax(1)
    return {how: torch.stack([first, first + 2, torch.full_like(first, -1)], 1)[:, None]}


@pytest.mark.parametrize("how", ["prompt_lengths", "prompt_mask", "intervention_locations"])
def test_per_sample_gradients_with_stated_positions(how: str) -> None:
    batch, model = padded_batch(), edited_llama("loreft", dtype=torch.float32)
    parameters = trained(model)
    arguments = {**batch.arguments(), **stated(batch, how)}
    wanted = one_by_one(model, parameters, arguments)
    assert_close(per_sample(model, parameters, arguments), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"prompt_lengths": torch.tensor([3, 3, 8])}, LocationError, r"prompt_lengths\[0\] is 8.*row has 7"),
        ({"prompt_mask": torch.ones(3, 12, dtype=torch.long)}, LocationError, "marks padding"),
        ({"prompt_mask": torch.full((3, 12), 2)}, LocationError, "prompt_mask holds 2"),
        ({"intervention_locations": torch.tensor([[[3]], [[12]], [[5]]])}, LocationError, "names column 12"),
        ({"intervention_locations": torch.tensor([[[3]], [[0]], [[5]]])}, LocationError, "column of padding"),
        ({"labels": torch.full((3, 12), 7)}, PromptBoundaryError, "has none"),
    ],
    ids=str,
)
def test_what_is_wrong_in_one_sample_is_refused(wrong: Tensors, error: type[Exception], text: str) -> None:
    batch, model = padded_batch(), edited_llama("loreft", dtype=torch.float32)
    with pytest.raises(error, match=f"(?s){text}"):
        per_sample(model, trained(model), {**batch.arguments(), **wrong})


def test_many_sets_of_parameters_run_as_one() -> None:
    batch, model = padded_batch(), edited_llama("loreft", share_weights=False)
    sets = [trained(model), direction(trained(model), 1), direction(trained(model), 2)]
    stacked = {name: torch.stack([one[name] for one in sets]) for name in sets[0]}
    found = vmap(lambda p: loss_of(model, p, batch.arguments()))(stacked)
    assert_close(found, torch.stack([loss_of(model, one, batch.arguments()) for one in sets]))


@pytest.mark.parametrize("kind", ["bias", "lobireft"])
def test_hessians_are_those_of_dense_edits(kind: str) -> None:
    batch, model = padded_batch(), edited_llama(kind, r=1, layers_to_transform=[1])
    full = trained(model)
    (name,) = [one for one in full if one.endswith(("shift", "rotation"))]

    def of(loss: Loss) -> Loss:
        return lambda one: loss({**full, name: one})

    fast = of(lambda p: loss_of(model, p, batch.arguments()))
    wanted = hessian(of(dense_loss(kind, batch)))(full[name])
    assert wanted.numel() == HIDDEN**2
    assert wanted.any()
    assert_close(hessian(fast)(full[name]), wanted, rtol=1e-8, atol=1e-8)
    assert_close(jacrev(jacrev(fast))(full[name]), wanted, rtol=1e-5, atol=1e-5)
    (again,) = torch.autograd.functional.hessian(fast, (full[name],))[0]
    assert_close(again, wanted, rtol=1e-5, atol=1e-5)


def test_jacobians_of_logits_with_chosen_subspaces() -> None:
    batch = padded_batch()
    model = edited_llama("loreft", r=4, subspaces={"one": [0, 2], "two": [2, 4]})
    set_subspaces(model, "default", ["one"])
    parameters = trained(model)
    name = next(one for one in parameters if one.endswith("rotation"))

    def read(one: Tensor) -> Tensor:
        call = {"input_ids": batch.ids, "attention_mask": batch.real, "use_cache": False}
        logits: Tensor = functional_call(model, {**parameters, name: one}, (), call).logits
        return logits[:, -1, :2]

    found = jacrev(read)(parameters[name])
    leaf = parameters[name].clone().requires_grad_()
    wanted = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in read(leaf).flatten()])
    assert_close(found.flatten(0, 1), wanted)
    assert not found[..., 2:, :].any()
    assert found.any()
