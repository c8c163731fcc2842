"""What a forward leaves behind (nothing), and what may happen around it: checkpointing, errors, threads, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from contract.open_frames import open_frames
from contract.tiny import reft_model, token_ids
from peft_reft.hub_format.errors import PositionError, PromptBoundaryError

NAMES = ("llama", "gpt2", "t5", "bert")


def training_batch(seed: int, *, rows: int = 2, length: int = 8, prompt: int = 4) -> dict[str, Tensor]:
    ids = token_ids(rows, length, seed=seed)
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    return found


def trained(model: PeftModel, *batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of one backward through the sum of the losses of several forwards."""
    model.train()
    sum(model(**batch).loss for batch in batches).backward()
    return gradients(model)


@pytest.mark.parametrize("name", NAMES)
def test_two_forwards_may_precede_one_backward(name: str) -> None:
    model = reft_model(name, dtype=torch.float64, positions="f2+l2")
    one, two = training_batch(1), training_batch(2, rows=3, length=11, prompt=6)
    apart = [trained(model, one), trained(model, two)]
    together = trained(model, one, two)
    assert together.keys() == apart[0].keys() == apart[1].keys()
    for key, value in together.items():
        assert value.abs().sum() > 0
        assert_close(value, apart[0][key] + apart[1][key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("spec", ["f2+l2", "all"])
def test_gradient_checkpointing_changes_no_gradient(name: str, reentrant: bool, spec: str) -> None:
    model = reft_model(name, dtype=torch.float64, positions=spec)
    batches = training_batch(1), training_batch(2, rows=3, length=11, prompt=6)
    plain = trained(model, *batches)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    checkpointed = trained(model, *batches)
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        assert_close(checkpointed[key], value)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_whole_block_is_refused(reentrant: bool) -> None:
    """There the hook would run again, in the backward pass, where positions are not known."""
    model = reft_model("llama", positions="f2+l2").train()
    block = model.get_submodule("base_model.model.model.layers.1")
    forward = block.__call__
    container = model.get_submodule("base_model.model.model.layers")

    class Checkpointed(torch.nn.Module):
        def forward(self, hidden: Tensor, **kwargs: Any) -> Any:
            return checkpoint(lambda inner: forward(inner, **kwargs), hidden, use_reentrant=reentrant)

    container[1] = Checkpointed()
    model.enable_input_require_grads()
    loss = model(**training_batch(1)).loss
    with pytest.raises(PositionError, match="gradient_checkpointing_enable"):
        loss.backward()


def raising_at(module: torch.nn.Module, error: type[BaseException]) -> Callable[[], None]:
    """Make a module raise; the returned function ends that."""

    def fail(*args: Any) -> None:
        raise error("on purpose")

    return module.register_forward_pre_hook(fail).remove


PLACES = ("model.layers.0", "model.layers.2", "lm_head", "model.norm", "model")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("entry", ["model", "backbone", "generate"])
def test_an_error_leaves_nothing_that_a_later_call_sees(error: type[BaseException], place: str, entry: str) -> None:
    model = reft_model("llama", positions="f2+l2")
    backbone = model.get_base_model().model
    calls: dict[str, Callable[[Tensor], Any]] = {
        "model": lambda ids: model(input_ids=ids),
        "backbone": lambda ids: backbone(input_ids=ids),
        "generate": lambda ids: model.generate(input_ids=ids, max_new_tokens=2),
    }
    other = token_ids(1, 7, seed=9)
    with torch.no_grad():
        logits, states = model(input_ids=other).logits, backbone(input_ids=other)[0]
        mend = raising_at(model.get_base_model().get_submodule(place), error)
        if place == "lm_head" and entry == "backbone":
            calls[entry](token_ids(1, 7))
        else:
            with pytest.raises(error, match="on purpose"):
                calls[entry](token_ids(1, 7))
        mend()
        assert open_frames(model) == []
        assert torch.equal(backbone(input_ids=other)[0], states)
        assert torch.equal(model(input_ids=other).logits, logits)
    assert open_frames(model) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_call_inside_the_handling_of_an_interruption(place: str) -> None:
    """While the interrupted forward is still referred to, as a debugger or a notebook does."""
    model = reft_model("llama", positions="f2+l2")
    other = token_ids(1, 7, seed=9)
    with torch.no_grad():
        logits = model(input_ids=other).logits
        mend = raising_at(model.get_base_model().get_submodule(place), KeyboardInterrupt)
        try:
            model(input_ids=token_ids(1, 7))
        except KeyboardInterrupt:
            mend()
            assert torch.equal(model(input_ids=other).logits, logits)


@pytest.mark.parametrize("place", ["encoder.block.1", "decoder.block.1", "lm_head"])
def test_a_generation_after_an_interrupted_one(place: str) -> None:
    """An encoder that `generate` calls by itself must not find the frame of the forward that was interrupted."""
    model, ids = reft_model("t5", positions="f2+l2"), token_ids(2, 7)
    wanted = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    mend = raising_at(model.get_base_model().get_submodule(place), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(input_ids=ids, max_new_tokens=3)
    mend()
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=3, do_sample=False), wanted)
    assert open_frames(model) == []


def test_a_refused_call_leaves_no_frame() -> None:
    model = reft_model("llama", positions="l2").train()
    with pytest.raises(PromptBoundaryError):
        model(input_ids=token_ids(1, 5))
    assert open_frames(model) == []
    model.eval()
    model(input_ids=token_ids(1, 5))
    assert open_frames(model) == []


def test_a_block_called_by_itself_is_refused() -> None:
    model = reft_model("gpt2", positions="l2")
    with pytest.raises(PositionError, match="call the whole model"):
        model.get_base_model().transformer.h[0](torch.zeros(1, 3, 32))


def test_threads_share_a_model() -> None:
    model = reft_model("llama", positions="f2+l2")
    batches = [token_ids(1 + number % 3, 5 + number, seed=number) for number in range(8)]

    @torch.no_grad()
    def run(ids: Tensor) -> tuple[Tensor, list[list[int]]]:
        return model(input_ids=ids).logits, model.generate(input_ids=ids, max_new_tokens=4, do_sample=False).tolist()

    alone = [run(ids) for ids in batches]
    barrier = Barrier(4)

    def run_together(ids: Tensor) -> tuple[Tensor, list[list[int]]]:
        barrier.wait()
        return run(ids)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run_together, batches))
    for (logits, tokens), (wanted_logits, wanted_tokens) in zip(together, alone, strict=True):
        assert tokens == wanted_tokens
        assert_close(logits, wanted_logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_independent(copied: Callable[[PeftModel], PeftModel]) -> None:
    """Its hooks use its own parameters, its `generate` its own model; each can be unloaded alone."""
    model = reft_model("llama", positions="f2+l2")
    ids = token_ids(2, 7)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        twin = copied(model)
        assert torch.equal(twin(input_ids=ids).logits, before)
        for name, parameter in twin.named_parameters():
            if "reft_" in name:
                parameter.add_(1.0)
        changed = twin(input_ids=ids).logits
        assert not torch.equal(changed, before)
        assert torch.equal(model(input_ids=ids).logits, before)
        assert twin.get_base_model().generate.__self__.model is twin.get_base_model()
        base = twin.unload()
        assert torch.equal(model(input_ids=ids).logits, before)
        with model.disable_adapter():
            assert torch.equal(base(input_ids=ids).logits, model(input_ids=ids).logits)
    assert open_frames(model) == []


def test_a_forward_inside_a_forward_of_another_model() -> None:
    """Frames of two models stand on one stack; each finds its own."""
    outer, inner = reft_model("llama", positions="f2"), reft_model("gpt2", positions="l2")
    ids, others = token_ids(1, 6), token_ids(2, 9, seed=1)
    with torch.no_grad():
        wanted, wanted_inner = outer(input_ids=ids).logits, inner(input_ids=others).logits
        seen: list[Tensor] = []
        block = outer.get_base_model().model.layers[0]
        handle = block.register_forward_pre_hook(lambda *args: seen.append(inner(input_ids=others).logits) and None)
        assert torch.equal(outer(input_ids=ids).logits, wanted)
        handle.remove()
        assert torch.equal(seen[0], wanted_inner)
    assert open_frames(outer) == open_frames(inner) == []
