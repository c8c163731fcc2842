"""In training too the rows of a block's output are written in place where nobody else sees it: the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.runtime import site_edit

from .test_cost import printed_by


def model_and_embeddings(kind: str = "loreft", **settings: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False, intervention=kind, **settings)
    model: Any = get_peft_model(base_model("llama"), config).train()
    embedded = model.get_input_embeddings()(token_ids(3, 8)).detach().requires_grad_()
    return model, embedded


def labels() -> Tensor:
    found = token_ids(3, 8).clone()
    found[:, :5] = -100
    return found


def gradients(model: Any, embedded: Tensor, extra: Callable[[], Tensor | float] = lambda: 0.0) -> list[Tensor]:
    """The loss, and the gradients of the embeddings and of all that is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = model(inputs_embeds=embedded, labels=labels()).loss + extra()
    return [loss.detach(), *torch.autograd.grad(loss, [embedded, *trained])]


def by_copies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site_edit, "is_seen_here_only", lambda hidden, output: False)


def written(patch: pytest.MonkeyPatch) -> list[bool]:
    """Of each edit whether it was made in place."""
    found: list[bool] = []
    own = site_edit.edit_affine

    def edit(hidden: Tensor, ready: Any, *, in_place: bool) -> Tensor:
        found.append(in_place)
        return own(hidden, ready, in_place=in_place)

    patch.setattr(site_edit, "edit_affine", edit)
    return found


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("around", [nullcontext, torch.autograd.graph.save_on_cpu], ids=["kept", "offloaded"])
@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_the_gradients_of_copies(
    kind: str, around: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, embedded = model_and_embeddings(kind)
    places = written(monkeypatch)
    with around():
        own = gradients(model, embedded)
    assert places == [True] * model.config.num_hidden_layers
    by_copies(monkeypatch)
    assert equal(own, gradients(model, embedded))
    assert not any(places[model.config.num_hidden_layers :])


def test_a_frozen_adapter_passes_gradients_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation mode too, where a plan has a view: memory that edits share is no place for a gradient's path."""
    model, embedded = model_and_embeddings()
    model.eval().requires_grad_(False)

    def of_embeddings() -> Tensor:
        return torch.autograd.grad(model(inputs_embeds=embedded).logits.square().sum(), embedded)[0]

    own = of_embeddings()
    by_copies(monkeypatch)
    assert torch.equal(own, of_embeddings())
    with model.disable_adapter():
        assert not torch.equal(own, of_embeddings())


def _by_storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage(), tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()


def _of_storage(packed: Any) -> Tensor:
    storage, dtype, offset, shape, strides = packed
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, strides)


def test_memory_that_is_held_without_its_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage has one object in Python, which its tensor does not count."""
    model, embedded = model_and_embeddings()
    for block in model.get_base_model().model.layers:
        block.forward = (lambda own: lambda *args, **kwargs: own(*args, **kwargs).tanh())(block.forward)
    own = gradients(model, embedded)
    with torch.autograd.graph.saved_tensors_hooks(_by_storage, _of_storage):
        assert equal(own, gradients(model, embedded))
    seen: list[Any] = []
    block = model.get_base_model().model.layers[0]
    block.forward = type(block).forward.__get__(block)
    block.register_forward_hook(lambda module, args, output: seen.append(output.untyped_storage()), prepend=True)
    places = written(monkeypatch)
    gradients(model, embedded)
    assert places[0] is False


def test_a_part_that_learns_behind_a_source_that_does_not() -> None:
    """Blocks that are trained one by one: no gradient comes to an output, and the edits share no memory."""
    model, _ = model_and_embeddings("direft")
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("projection"))
    losses: list[Tensor] = []
    for block in model.get_base_model().model.layers:
        block.register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:]))
        block.register_forward_hook(lambda module, args, output: losses.append(output.square().mean()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def grads() -> list[Tensor]:
        losses.clear()
        model(input_ids=token_ids(3, 8))
        return list(torch.autograd.grad(sum(losses), trained))

    own = grads()
    assert all(bool(grad.any()) for grad in own)
    with pytest.MonkeyPatch.context() as patch:
        by_copies(patch)
        assert equal(own, grads())


class Squashed(nn.Module):
    """A block whose last step saves what it gives out: tanh's derivative is of its output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.block(*args, **kwargs).tanh()


def test_a_block_that_has_saved_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base: Any = base_model("llama")
    base.model.layers[0].forward = Squashed(type(base.model.layers[0])(base.config, 0)).forward
    model: Any = get_peft_model(base, ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False)).train()
    embedded = model.get_input_embeddings()(token_ids(3, 8)).detach().requires_grad_()
    places = written(monkeypatch)
    own = gradients(model, embedded)
    assert places[0] is False
    assert all(places[1:])
    by_copies(monkeypatch)
    assert equal(own, gradients(model, embedded))


@pytest.mark.parametrize(
    "keep", [lambda h: h, lambda h: h[:, 1:], lambda h: h.pow(2)], ids=["itself", "view", "square"]
)
def test_a_term_of_the_loss_of_what_was_before_the_edit(
    keep: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The square keeps no tensor that Python sees: its step of the backward pass has saved it."""
    model, embedded = model_and_embeddings()
    held: list[Tensor] = []
    block = model.get_base_model().model.layers[1]
    block.register_forward_hook(lambda module, args, output: held.append(keep(output)), prepend=True)
    places = written(monkeypatch)
    own = gradients(model, embedded, lambda: held.pop().square().mean())
    assert places == [True, False, *[True] * (len(places) - 2)]
    by_copies(monkeypatch)
    assert equal(own, gradients(model, embedded, lambda: held.pop().square().mean()))


def test_an_output_that_is_a_leaf_is_copied() -> None:
    model, _ = model_and_embeddings()
    given = torch.randn(3, 8, model.config.hidden_size)
    model.get_base_model().model.layers[0].forward = lambda *args, **kwargs: given.detach().requires_grad_()
    before = given.clone()
    model(input_ids=token_ids(3, 8), labels=labels()).loss.backward()
    assert torch.equal(given, before)


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
def test_blocks_that_are_computed_again(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, embedded = model_and_embeddings()

    def grads() -> list[Tensor]:
        model.zero_grad()
        embedded.grad = None
        model(inputs_embeds=embedded, labels=labels()).loss.backward()
        return [embedded.grad.clone(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    own = grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert equal(own, grads())
    by_copies(monkeypatch)
    assert equal(own, grads())


def test_no_whole_hidden_state_is_copied_in_a_training_step() -> None:
    """In a process of its own: where a compiler or a debugger watches, outputs have more holders and are copied."""
    code = (
        "from runtime.test_cost import step\n"
        "own = step(3, 'loreft') - step(3, None)\n"
        "print(own['index_copy_'], own['clone'])"  # a gradient is copied by index_copy
    )
    assert printed_by(code) == ["3", "0"]
