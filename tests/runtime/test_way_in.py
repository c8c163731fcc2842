"""`model.forward(...)` called by its name, and whatever stands in its place, gives what `model(...)` gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel
from torch import Tensor, nn
from torch.testing import assert_close

from contract.open_frames import open_frames
from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig

from .shifted import LENGTH, PROMPT, batch, biased, columns, shifted, shifts_of

NAMES = ("llama", "gpt2", "bert", "t5")


def reference(name: str, shifts: dict[str, Tensor], given: dict[str, Any], edited: dict[str, list[int]]) -> Tensor:
    base = base_model(name, dtype=torch.float64)
    with shifted(base, name, shifts, edited):
        return base(**given).logits.detach()


@pytest.mark.parametrize(
    ("name", "training", "labels"),
    [
        (name, training, labels)
        for name in NAMES
        for training in (True, False)
        for labels in (True, False)
        if labels or not training or name == "bert"  # else refused: nothing says where the prompt ends
    ],
)
def test_by_name_and_by_call_are_one(name: str, training: bool, labels: bool) -> None:
    model = biased(name).train(training)
    base, given = model.get_base_model(), batch(name, labels=labels)
    wanted = reference(name, shifts_of(model), given, columns(name, labels=labels))
    for call in (base, base.forward, model, model.forward):
        assert_close(call(**given).logits.detach(), wanted)
        assert open_frames(model) == []
    assert torch.equal(base(**given).logits, base.forward(**given).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_what_is_stated_is_seen_by_name_too(name: str) -> None:
    model, given = biased(name), batch(name, labels=False)
    base = model.get_base_model()
    wanted = reference(name, shifts_of(model), given, {"only": [0, 2, 3]})
    stated: list[dict[str, Any]] = [
        {"prompt_lengths": torch.tensor([4, 4])},
        {"prompt_mask": (torch.arange(LENGTH) < 4).long().repeat(2, 1)},
        {"intervention_locations": torch.tensor([[[0, 2, 3]]]).repeat(2, 1, 1)},
        {"intervention_locations": {"default": torch.tensor([[[0, 2, 3]]]).repeat(2, 1, 1)}},
    ]
    for positions in stated:
        for call in (base, base.forward, model):
            assert_close(call(**given, **positions).logits.detach(), wanted)
    assert_close(base.forward(given["input_ids"], prompt_lengths=torch.tensor([4, 4])).logits.detach(), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_may_be_given_by_their_place(name: str) -> None:
    model = biased(name)
    base, given = model.get_base_model(), batch(name)
    names = list(inspect.signature(base.forward).parameters)
    args = [given.get(key) for key in names[: names.index("labels") + 1]]
    wanted = reference(name, shifts_of(model), given, columns(name, labels=True))
    for call in (base, base.forward):
        assert_close(call(*args).logits.detach(), wanted)


@pytest.mark.parametrize(("name", "path"), [("llama", "model"), ("gpt2", "transformer"), ("bert", "bert")])
def test_a_backbone_alone(name: str, path: str) -> None:
    model, given = biased(name), batch(name, labels=False)
    backbone, base = model.get_base_model().get_submodule(path), base_model(name, dtype=torch.float64)
    with shifted(base, name, shifts_of(model), columns(name, labels=False)):
        wanted = base.get_submodule(path)(**given).last_hidden_state.detach()
    for call in (backbone, backbone.forward):
        assert_close(call(**given).last_hidden_state.detach(), wanted)


def test_an_encoder_alone() -> None:
    model, given = biased("t5"), batch("t5")
    given = {key: given[key] for key in ("input_ids", "attention_mask")}
    encoder, base = model.get_base_model().get_encoder(), base_model("t5", dtype=torch.float64)
    with shifted(base, "t5", shifts_of(model), columns("t5", labels=True)):
        wanted = base.get_encoder()(**given).last_hidden_state.detach()
    for call in (encoder, encoder.forward):
        assert_close(call(**given).last_hidden_state.detach(), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_of_transformers(name: str) -> None:
    """`model.add_adapter` puts no `PeftModel` around."""
    model, given = base_model(name, dtype=torch.float64), batch(name)
    task = None if name == "bert" else "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    model.add_adapter(ReftConfig(task_type=task, intervention="bias", positions="f1+l2", init_weights=False))
    wanted = reference(name, shifts_of(model), given, columns(name, labels=True))
    for training in (True, False):
        for call in (model.train(training), model.forward):
            assert_close(call(**given).logits.detach(), wanted)


def test_an_encoder_without_a_head() -> None:
    """What sentence-transformers holds: a `BertModel`, called by the name of its forward."""
    config = base_model("bert").config
    torch.manual_seed(0)
    model = hf.BertModel(config).double().eval()
    plain = hf.BertModel(config).double().eval()
    plain.load_state_dict(model.state_dict())
    model.add_adapter(
        ReftConfig(task_type="FEATURE_EXTRACTION", intervention="bias", positions="f1+l2", init_weights=False)
    )
    given = batch("bert", labels=False)
    handles = [
        plain.get_submodule(path).register_forward_hook(_adding(vector)) for path, vector in shifts_of(model).items()
    ]
    assert len(handles) == 3
    wanted = plain(**given).last_hidden_state
    for call in (model, model.forward):
        assert_close(call(**given).last_hidden_state, wanted)


def _adding(vector: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = (output if isinstance(output, Tensor) else output[0]).clone()
        hidden[:, [0, LENGTH - 2, LENGTH - 1]] += vector
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    return hook


# What others put in the place of `forward` on the instance. Each is undone as its owner undoes it, if it does.


def fused_head(model: Any) -> None:
    """As TRL's (`chunked_nll`) and Liger's: labels stay outside, the backbone is called by itself."""

    def forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
    ) -> Any:
        backbone = getattr(self, self.base_model_prefix)
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return hf.modeling_outputs.CausalLMOutputWithPast(logits=self.get_output_embeddings()(hidden))

    model.forward = MethodType(forward, model)


def a_lambda(model: Any) -> None:
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def a_partial(model: Any) -> None:
    model.forward = functools.partial(model.forward, use_cache=False)


def own_loss(model: Any) -> None:
    """Keeps the labels for itself."""
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    model.forward = forward


def past_setattr(model: Any) -> None:
    inner = model.forward
    model.__dict__["forward"] = lambda *args, **kwargs: inner(*args, **kwargs)


def accelerate_hook(model: Any) -> None:
    add_hook_to_module(model, ModelHook(), append=True)


def accelerate_fp32(model: Any) -> None:
    """As `Accelerator.prepare_model` under mixed precision."""
    model._original_forward = model.forward
    function = model.forward.__func__ if hasattr(model.forward, "__func__") else model.forward
    wrapped = torch.autocast("cpu", enabled=False)(function)
    model.forward = MethodType(wrapped, model) if hasattr(model.forward, "__func__") else wrapped
    model.forward = (
        MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
        if hasattr(model.forward, "__func__")
        else convert_outputs_to_fp32(model.forward)
    )


WRAPPERS: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (fused_head, a_lambda, a_partial, own_loss, past_setattr, accelerate_hook, accelerate_fp32)
}
ORDERS = [
    *([name] for name in WRAPPERS),
    ["fused_head", "accelerate_fp32"],
    ["fused_head", "a_lambda", "accelerate_hook"],
    ["accelerate_hook", "accelerate_fp32", "a_lambda"],
    ["own_loss", "past_setattr"],
    ["past_setattr", "past_setattr", "a_partial"],
]


@pytest.mark.parametrize(
    ("order", "before"), [(order, before) for order in ORDERS for before in range(len(order) + 1)], ids=str
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_whoever_replaced_forward_labels_are_seen(name: str, order: list[str], before: int) -> None:
    """`before` of the wrappers come before `get_peft_model`, the rest after it; then the adapter is unloaded."""
    base, plain, given = (*(base_model(name, dtype=torch.float64) for _ in range(2)), batch(name))
    original = type(base)
    for wrapper in order:
        WRAPPERS[wrapper](plain)
    untouched = plain(**given).logits.detach()
    for wrapper in order[:before]:
        WRAPPERS[wrapper](base)
    model = biased(name, base=base)
    for wrapper in order[before:]:
        WRAPPERS[wrapper](base)
    with shifted(plain, name, shifts_of(model), columns(name, labels=True)):
        wanted = plain(**given).logits.detach()
    assert not torch.equal(wanted, untouched)
    for training in (True, False):
        model.train(training)
        for call in (base, base.forward, model):
            assert_close(call(**given).logits.detach(), wanted)
            assert open_frames(model) == []
    assert list(inspect.signature(base.forward).parameters) == list(inspect.signature(plain.forward).parameters)
    model.unload()
    assert type(base) is original
    assert not [key for key in vars(base) if "reft" in key]
    for call in (base, base.forward):
        assert torch.equal(call(**given).logits, untouched)
    assert not any("peft_reft" in type(module).__module__ for module in base.modules())


@pytest.mark.parametrize("before", [True, False])
def test_a_class_wide_patch_in_the_manner_of_liger(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces `forward` on the class, before or after, and is seen in both cases."""

    class Patched(hf.LlamaForCausalLM):  # type: ignore[misc]
        """A class of the test's own, so that no other test sees the patch."""

    own = Patched.forward
    calls = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return own(self, *args, **kwargs)

    functools.update_wrapper(forward, own)
    base = Patched(base_model("llama").config).double().eval()
    plain = Patched(base_model("llama").config).double().eval()
    plain.load_state_dict(base.state_dict())
    if before:
        Patched.forward = forward
    model = biased("llama", base=base)
    Patched.forward = forward
    given = batch("llama")
    with shifted(plain, "llama", shifts_of(model), columns("llama", labels=True)):
        wanted = plain(**given).logits.detach()
    calls.clear()
    for number, call in enumerate((base, base.forward), 1):
        assert_close(call(**given).logits.detach(), wanted)
        assert len(calls) == number
    Patched.forward = own
    assert_close(base(**given).logits.detach(), wanted)
    assert len(calls) == 2


def test_accelerate_takes_off_what_it_put_on() -> None:
    base = base_model("llama", dtype=torch.float64)
    untouched = base(**batch("llama")).logits
    model = biased("llama", base=base)
    wanted = base(**batch("llama")).logits
    add_hook_to_module(base, ModelHook())
    remove_hook_from_module(base)
    assert torch.equal(base(**batch("llama")).logits, wanted)
    add_hook_to_module(base, ModelHook())
    base = model.unload()
    remove_hook_from_module(base)
    assert type(base) is hf.LlamaForCausalLM
    assert torch.equal(base(**batch("llama")).logits, untouched)
    assert torch.equal(base.forward(**batch("llama")).logits, untouched)


def test_extract_model_from_parallel_gives_back_a_model_that_edits() -> None:
    model = biased("llama")
    base = model.get_base_model()
    wanted = base(**batch("llama")).logits
    accelerate_fp32(base)
    kept = extract_model_from_parallel(base, keep_fp32_wrapper=False)
    assert kept is base
    assert torch.equal(base(**batch("llama")).logits, wanted)
    assert torch.equal(base.forward(**batch("llama")).logits, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_what_others_read_of_a_model_is_as_before(name: str, tmp_path: Any) -> None:
    base, plain = base_model(name), base_model(name)
    model = biased(name, base=base)
    for module, own in ((base, plain), *zip(base.children(), plain.children(), strict=True)):
        assert inspect.signature(module.forward) == inspect.signature(own.forward)
        assert inspect.signature(type(module).forward) == inspect.signature(type(own).forward)
        assert inspect.getsource(module.forward) == inspect.getsource(own.forward)
        assert type(module).__name__ == type(own).__name__ == module._get_name()
        assert type(module).__qualname__ == type(own).__qualname__
        assert module.__class__.__module__ == own.__class__.__module__
        assert module.forward.__doc__ == own.forward.__doc__
        assert isinstance(module, type(own))
    trainer = hf.Trainer(
        model=model,
        args=hf.TrainingArguments(output_dir=str(tmp_path / "trainer"), report_to=[], use_cpu=True),
        train_dataset=[{"input_ids": [5, 6], "labels": [5, 6]}],
    )
    trainer._set_signature_columns_if_needed()
    columns_seen = set(trainer._signature_columns)
    assert set(inspect.signature(plain.forward).parameters) <= columns_seen
    base.save_pretrained(tmp_path / "base")
    assert hf.AutoConfig.from_pretrained(tmp_path / "base").architectures == [type(plain).__name__]
    assert model.unload() is base
    assert [type(module) for module in base.modules()] == [type(module) for module in plain.modules()]


def test_a_prompt_of_its_own_for_each_row_by_name() -> None:
    """Not the same columns in every row: what the frame holds is this call's."""
    model = biased("llama", positions="l1")
    base, ids = model.get_base_model(), token_ids(2, LENGTH, seed=4)
    labels = ids.masked_fill(torch.arange(LENGTH) < torch.tensor([[3], [PROMPT]]), -100)
    rows = [
        reference("llama", shifts_of(model), {"input_ids": ids[row : row + 1]}, {"only": [end]})
        for row, end in ((0, 2), (1, PROMPT - 1))
    ]
    assert_close(base.forward(input_ids=ids, labels=labels).logits.detach(), torch.cat(rows))
