"""The way in survives copies and compilers, and belongs to one forward: nested, interrupted, in threads."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import FrameType, MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.testing import assert_close

from contract.open_frames import open_frames
from contract.tiny import base_model, token_ids
from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError
from peft_reft.runtime import state_of

from .shifted import batch, biased, columns, shifted, shifts_of


def replaced_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Found in this module by a pickle, bound to the instance as Liger and TRL bind theirs."""
    return type(self).forward(self, *args, **kwargs)


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
    "twice": lambda module: copy.deepcopy(pickle.loads(pickle.dumps(module))),
}


@pytest.mark.parametrize("of", ["peft", "base"])
@pytest.mark.parametrize(
    ("how", "replaced"), [*((how, False) for how in COPIES), ("deepcopy", True)]
)  # a pickle names a bound method, which a replaced forward is not
def test_a_copy_has_a_way_in_of_its_own(how: str, replaced: bool, of: str) -> None:
    model = biased("llama")
    if replaced:
        model.get_base_model().forward = MethodType(replaced_forward, model.get_base_model())
    given = batch("llama")
    wanted = model(**given).logits
    whole = COPIES[how](model if of == "peft" else model.get_base_model())
    copied = whole.get_base_model() if of == "peft" else whole
    assert type(copied).__name__ == "LlamaForCausalLM"
    assert isinstance(copied, hf.LlamaForCausalLM)
    for call in (whole, copied, copied.forward):
        assert torch.equal(call(**given).logits, wanted)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if ".reft." in key:
                value.zero_()
    for call in (whole, copied, copied.forward):
        assert torch.equal(call(**given).logits, wanted)
    untouched = model(**given).logits
    assert not torch.equal(untouched, wanted)
    if of == "peft":
        model.unload()
        assert torch.equal(copied.forward(**given).logits, wanted)
        plain = whole.unload()
        assert type(plain) is hf.LlamaForCausalLM
        assert torch.equal(plain(**given).logits, untouched)
        assert torch.equal(plain.forward(**given).logits, untouched)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_what_was_unloaded_is_the_base(how: str) -> None:
    model = biased("llama")
    base = model.get_base_model()
    if how == "deepcopy":
        base.forward = MethodType(replaced_forward, base)
    copied = COPIES[how](model.unload())
    assert type(copied) is hf.LlamaForCausalLM
    given = batch("llama")
    assert torch.equal(copied(**given).logits, base_model("llama", dtype=torch.float64)(**given).logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_by_name(reentrant: bool) -> None:
    model, given = biased("llama").train(), batch("llama")
    base = model.get_base_model()
    base.forward(**given).loss.backward()
    wanted = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    base.forward(**given).loss.backward()
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert wanted
    assert_close({key: found[key] for key in wanted}, wanted)
    assert open_frames(model) == []


def test_replicas_of_data_parallel() -> None:
    """As `nn.parallel.replicate` makes them: of the same class, with modules put in by hand."""
    model, given = biased("llama"), batch("llama")
    wanted = model(**given).logits
    modules = list(model.modules())
    copies = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        replica = copies[id(module)]
        replica._former_parameters = {}
        for key, child in module._modules.items():
            replica._modules[key] = None if child is None else copies[id(child)]
        for key, parameter in module._parameters.items():
            setattr(replica, key, None if parameter is None else parameter.detach().clone())
            replica._former_parameters[key] = None
        replica._is_replica = True
    replica = copies[id(model)]
    base = copies[id(model.get_base_model())]
    for call in (replica, base, base.forward):
        assert torch.equal(call(**given).logits, wanted)
    assert open_frames(model) == []


def test_a_forward_of_the_same_model_inside_a_hook() -> None:
    """It is a forward of its own: other tokens, other prompts; the outer one goes on as if it had not been."""
    model = biased("llama", positions="l1")
    base, outer, inner = model.get_base_model(), batch("llama"), batch("llama", seed=8, labels=False)
    longer = {"input_ids": token_ids(1, 11, seed=2)}
    wanted = [base(**given).logits for given in (outer, inner, longer)]
    stated = {"input_ids": inner["input_ids"], "prompt_lengths": torch.tensor([3, 4])}
    wanted.append(base(**stated).logits)
    for call in (base, base.forward, model):
        for place in ("model.layers.1", "model.norm", "lm_head", "model", ""):
            seen: list[Tensor] = []

            def hook(module: nn.Module, args: Any, call: Any = call, seen: list[Tensor] = seen) -> None:
                if not seen:
                    seen.append(torch.empty(0))
                    seen.extend(call(**given).logits for given in (inner, longer, stated))

            handle = base.get_submodule(place).register_forward_pre_hook(hook)
            found = base.forward(**outer).logits
            handle.remove()
            if place == "" and not seen:
                continue  # `forward` by its name runs no hook of its module
            for one, other in zip((found, *seen[1:]), wanted, strict=True):
                assert torch.equal(one, other)
            assert open_frames(model) == []


def test_a_forward_inside_a_generation_is_not_of_it() -> None:
    model = biased("llama", positions="f1+l1")
    base, inner = model.get_base_model(), batch("llama")
    ids = token_ids(2, 6, seed=5)
    wanted = base(**inner).logits
    tokens = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any) -> None:
        handle.remove()
        seen.append(base.forward(**inner).logits)

    handle = base.model.layers[1].register_forward_pre_hook(hook)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False), tokens)
    assert torch.equal(seen[0], wanted)


def test_the_rows_of_a_call_are_not_those_of_one_that_a_hook_makes() -> None:
    """Before the call comes to the model, or inside of it."""
    model, outer, inner = biased("llama"), batch("llama"), batch("llama", seed=9)
    base, names = model.get_base_model(), ["default", "__base__"]
    ids = token_ids(2, 6, seed=5)
    wanted = model(**outer, adapter_names=names).logits, base(**inner).logits
    tokens = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert not torch.equal(wanted[0], base(**outer).logits)
    for place in ("", "model.layers.0"):
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: Any, seen: list[Tensor] = seen) -> None:
            if not seen:
                seen.append(ids)
                seen.append(base(**inner).logits)
                seen.append(base.generate(input_ids=ids, max_new_tokens=3, do_sample=False))

        handle = base.get_submodule(place).register_forward_pre_hook(hook)
        found = model(**outer, adapter_names=names).logits
        handle.remove()
        assert torch.equal(found, wanted[0])
        assert torch.equal(seen[1], wanted[1])
        assert torch.equal(seen[2], tokens)


def test_rows_of_a_batch_that_never_comes_are_an_error() -> None:
    model, given = biased("llama"), batch("llama")
    handle = model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: (args, {k: v.clone() for k, v in kwargs.items() if v is not None}),
        with_kwargs=True,
    )
    with pytest.raises(ConfigError, match="reached no call"):
        model(**given, adapter_names=["default", "__base__"])
    handle.remove()
    model(**given, adapter_names=["default", "__base__"])


def test_a_generation_inside_a_forward() -> None:
    model = biased("llama", positions="f1+l1")
    base, outer, ids = model.get_base_model(), batch("llama"), token_ids(1, 6, seed=5)
    wanted = base(**outer).logits
    tokens = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any) -> None:
        handle.remove()
        seen.append(base.generate(input_ids=ids, max_new_tokens=4, do_sample=False))

    handle = base.model.layers[1].register_forward_pre_hook(hook)
    assert torch.equal(base(**outer).logits, wanted)
    assert torch.equal(seen[0], tokens)


def test_a_forward_of_another_model_inside_a_hook() -> None:
    one, two = biased("llama"), biased("llama", positions="f2")
    outer, inner = batch("llama"), batch("llama", seed=9)
    wanted = one(**outer).logits, two(**inner).logits
    seen: list[Tensor] = []
    handle = (
        one.get_base_model()
        .model.layers[1]
        .register_forward_pre_hook(lambda module, args: seen.append(two.get_base_model().forward(**inner).logits))
    )
    for call in (one, one.get_base_model().forward):
        assert torch.equal(call(**outer).logits, wanted[0])
    handle.remove()
    assert all(torch.equal(found, wanted[1]) for found in seen)
    assert len(seen) == 2


def test_a_wrapper_that_says_the_batch_in_its_own_way() -> None:
    """The frame is of the call that shows the tokens, the labels, the prompt."""
    model, given = biased("llama"), batch("llama")
    base, plain = model.get_base_model(), base_model("llama", dtype=torch.float64)
    with shifted(plain, "llama", shifts_of(model), columns("llama", labels=True)):
        wanted = plain(**given).logits
    inner = base.forward
    base.forward = lambda batch: inner(**batch)
    assert_close(base(given).logits, wanted)
    assert_close(base.forward(batch=given).logits, wanted)
    del base.forward
    labels = given.pop("labels")
    inner = base.forward
    base.forward = lambda **kwargs: inner(**kwargs, labels=labels)
    assert_close(base(**given).logits, wanted)
    with pytest.raises(PromptBoundaryError, match="pass labels"):  # loud, where the wrapper alone has them
        base.train().forward(**given)


def test_a_wrapper_that_makes_another_batch() -> None:
    """As losses of preferences do: two batches become one."""
    model, given = biased("llama"), batch("llama")
    base, plain = model.get_base_model(), base_model("llama", dtype=torch.float64)
    with shifted(plain, "llama", shifts_of(model), columns("llama", labels=True)):
        wanted = plain(**given).logits
    inner = base.forward
    base.forward = lambda **kwargs: inner(**{key: torch.cat([value, value]) for key, value in kwargs.items()})
    assert_close(base(**given).logits, torch.cat([wanted, wanted]))


def test_threads_by_name() -> None:
    model = biased("llama", positions="l2")
    base = model.get_base_model()
    batches = [batch("llama", seed=seed, rows=1 + seed % 3, labels=seed % 2 == 0) for seed in range(4)]
    wanted = [base(**given).logits for given in batches]
    barrier = Barrier(len(batches))

    def run(given: dict[str, Tensor]) -> list[Tensor]:
        barrier.wait()
        return [(base if turn % 2 else base.forward)(**given).logits for turn in range(4)]

    with ThreadPoolExecutor(len(batches)) as pool:
        for found, one in zip(pool.map(run, batches), wanted, strict=True):
            assert all(torch.equal(logits, one) for logits in found)


class Interrupt:
    """Raises `KeyboardInterrupt` where the n-th function of ours starts, which is where signals come in."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.error: KeyboardInterrupt | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Asked where a function starts, and, as it gives nothing, not again for its every line."""
        if OURS.search(frame.f_code.co_filename):
            self.left -= 1
            if self.left == -1:
                raise KeyboardInterrupt

    def strikes(self, call: Callable[[], Any]) -> bool:
        """Whether the call was interrupted. Its traceback is kept, as a notebook keeps it."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt as error:
            self.error = error
        finally:
            sys.settrace(before)
        return self.error is not None


OURS = re.compile(r"/peft_reft/|/contextlib\.py$")


@pytest.mark.parametrize("way", ["call", "name", "rows", "generate", "generate rows", "encoder"])
def test_an_interrupt_anywhere_leaves_nothing(way: str) -> None:
    name = "t5" if way == "encoder" else "llama"
    model, given = biased(name), batch(name)
    base, ids = model.get_base_model(), token_ids(2, 6)
    calls: dict[str, Callable[[], Any]] = {
        "call": lambda: base(**given).logits,
        "name": lambda: base.forward(**given).logits,
        "rows": lambda: model(**given, adapter_names=["default", "__base__"]).logits,
        "generate rows": lambda: model.generate(
            input_ids=ids, max_new_tokens=2, do_sample=False, adapter_names=["default", "__base__"]
        ),
        "generate": lambda: model.generate(input_ids=ids, max_new_tokens=2, do_sample=False),
        "encoder": lambda: base.get_encoder().forward(input_ids=ids).last_hidden_state,
    }
    wanted, plain = calls[way](), base(**given).logits
    running, kept = state_of(base).running, []
    for at in itertools.count():
        interrupt = Interrupt(at)
        if not interrupt.strikes(calls[way]):
            break
        kept.append(interrupt.error)
        assert (running.frame, running.call, running.session, running.rows) == (None,) * 4, traceback_of(interrupt)
        if at % 8 == 0:
            assert torch.equal(calls[way](), wanted)
            assert torch.equal(base(**given).logits, plain)
    assert len(kept) > 10
    assert torch.equal(calls[way](), wanted)


def traceback_of(interrupt: Interrupt) -> str:
    return "".join(traceback.format_exception(interrupt.error))


def test_a_call_that_ends_late_takes_nothing_from_the_one_that_runs() -> None:
    """An interrupt's traceback may hold a call's context beyond the start of the next one."""
    model, given = biased("llama"), batch("llama")
    base, names = model.get_base_model(), ["default", "__base__"]
    wanted = model(**given, adapter_names=names).logits
    hooks = len(base._forward_pre_hooks)
    left = model.base_model._enable_peft_forward_hooks(adapter_names=names, **given)
    left.__enter__()
    state_of(base).running.rows = None  # as the interrupted forward leaves it
    with model.base_model._enable_peft_forward_hooks(adapter_names=names, **given):
        assert len(base._forward_pre_hooks) == hooks + 1
        left.gen.close()
        assert torch.equal(base(**given).logits, wanted)
    assert len(base._forward_pre_hooks) == hooks
    assert torch.equal(model(**given, adapter_names=names).logits, wanted)
