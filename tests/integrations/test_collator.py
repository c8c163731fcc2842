"""`ReftDataCollator`: its mask says what the labels say, whatever collates, pads or packs the examples."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    default_data_collator,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

from contract.tiny import reft_model
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError
from peft_reft.integrations import ReftDataCollator
from peft_reft.runtime.inputs import Explicit, call_inputs
from peft_reft.runtime.resolve import unit_masks
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.views import AdapterView

from .tiny_sft import tokenizer


def left_padding() -> Any:
    made = copy.deepcopy(tokenizer())
    made.padding_side = "left"
    return DataCollatorForSeq2Seq(made, label_pad_token_id=-100)


PACKING = ("padding_free", "filled", "flattened")
COLLATORS: dict[str, Callable[[], Any]] = {
    "padded": lambda: TrlCollator(pad_token_id=0),
    "with_position_ids": lambda: TrlCollator(pad_token_id=0, return_position_ids=True),
    "padding_free": lambda: TrlCollator(pad_token_id=0, padding_free=True),
    "filled": lambda: TrlCollator(pad_token_id=0, padding_free=True, pad_to_multiple_of=16),
    "flattened": lambda: DataCollatorWithFlattening(),
    "right": lambda: DataCollatorForSeq2Seq(tokenizer()),
    "left": left_padding,
}
SPECS = ["f2", "l2", "f1+l2", "prompt", "p[1:-1]", "generated", "g[0:2]", "all", "all-f1", "f1+generated"]


def example(pattern: str) -> dict[str, list[int]]:
    """`p` is a token of a prompt, `a` one of an answer."""
    ids = [10 + number for number in range(len(pattern))]
    return {"input_ids": ids, "labels": [i if mark == "a" else -100 for i, mark in zip(ids, pattern, strict=True)]}


def masks_of(batch: dict[str, Any], spec: str, *, with_labels: bool) -> list[Tensor] | type[PromptBoundaryError]:
    """What a training forward edits, by the labels or by the mask."""
    batch = {name: value for name, value in batch.items() if name != ("prompt_mask" if with_labels else "labels")}
    view = AdapterView("default", ReftConfig(positions=spec, share_weights=False).groups())
    situation = Situation(trains_with_labels=True, explicit=Explicit(batch.get("prompt_mask")))
    call = call_inputs(batch, "only")
    assert call is not None
    try:
        return [unit.mask for unit in unit_masks(call, [view], situation).values()]
    except PromptBoundaryError:
        return PromptBoundaryError


@pytest.mark.parametrize("name", COLLATORS)
@settings(max_examples=60, deadline=None)
@given(patterns=st.lists(st.text("pa", min_size=1, max_size=9), min_size=1, max_size=4), spec=st.sampled_from(SPECS))
def test_the_mask_edits_what_the_labels_edit(name: str, patterns: list[str], spec: str) -> None:
    batch = ReftDataCollator(COLLATORS[name]())([example(pattern) for pattern in patterns])
    mask = batch["prompt_mask"]
    assert mask.dtype == torch.long
    assert mask.shape == batch["input_ids"].shape
    by_labels, by_mask = (masks_of(dict(batch), spec, with_labels=labels) for labels in (True, False))
    assert (by_labels is PromptBoundaryError) == (by_mask is PromptBoundaryError)
    if isinstance(by_labels, list) and isinstance(by_mask, list):
        assert all(torch.equal(one, other) for one, other in zip(by_labels, by_mask, strict=True))


@pytest.mark.parametrize("name", COLLATORS)
def test_the_mask_by_hand(name: str) -> None:
    patterns = {
        "pppaa": "11100",
        "ppapaa": "110100",  # two turns, two runs
        "ppap": "1100",  # no answer follows the last token
        "papa": "0000" if name in PACKING else "1010",  # one token before the first label is none in a packed row
        "aapa": "0000",  # supervised from the first token: no prompt, so no run that could be taken for one
        "ppp": "111",
    }
    batch = ReftDataCollator(COLLATORS[name]())([example(pattern) for pattern in patterns])
    found = "".join(str(bit) for bit in batch["prompt_mask"].flatten().tolist())
    if name in PACKING:
        assert found == "".join(patterns.values()).ljust(len(found), "0")
    else:
        pad = str.rjust if name == "left" else str.ljust
        assert found == "".join(pad(mask, 6, "0") for mask in patterns.values())


def test_a_forward_with_the_mask_is_the_forward_with_labels() -> None:
    model = reft_model("llama", positions="f1+l2").train()
    for name in ("padded", "padding_free", "left"):
        batch = ReftDataCollator(COLLATORS[name]())([example("pppaa"), example("ppppaaa")])
        known = {name: value for name, value in batch.items() if name not in ("prompt_mask", "labels")}
        with_labels = model(**known, labels=batch["labels"]).logits
        assert torch.equal(model(**known, prompt_mask=batch["prompt_mask"]).logits, with_labels)
        with pytest.raises(PromptBoundaryError, match="ReftDataCollator"):
            model(**known)


def test_default_data_collator() -> None:
    batch = ReftDataCollator(default_data_collator)([example("ppaa"), example("paaa")])
    assert batch["prompt_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_nothing_else_of_the_batch_changes() -> None:
    examples = [example("ppaa"), example("paa")]
    for make in COLLATORS.values():
        plain, wrapped = make()([dict(e) for e in examples]), ReftDataCollator(make())(examples)
        assert type(plain) is type(wrapped)
        assert set(wrapped) == {*plain, "prompt_mask"}
        for name, value in plain.items():
            assert torch.equal(wrapped[name], value) if isinstance(value, Tensor) else wrapped[name] == value
    assert examples == [example("ppaa"), example("paa")]


def test_attributes_are_those_of_the_wrapped_collator() -> None:
    inner = TrlCollator(pad_token_id=7)
    outer = ReftDataCollator(inner)
    assert outer.pad_token_id == 7
    assert not hasattr(outer, "tokenizer")
    outer.return_position_ids = True
    outer.padding_free = True
    assert (inner.return_position_ids, inner.padding_free) == (True, True)
    assert hasattr(ReftDataCollator(left_padding()), "tokenizer")
    assert "TrlCollator" not in vars(outer)
    for twin in (copy.deepcopy(outer), pickle.loads(pickle.dumps(outer))):
        assert twin.collator == inner
        assert torch.equal(twin([example("ppa")])["prompt_mask"], outer([example("ppa")])["prompt_mask"])


def test_a_collator_that_makes_the_mask_itself_has_the_last_word() -> None:
    def collate(features: list[Any]) -> dict[str, Tensor]:
        return {**TrlCollator(pad_token_id=0)(features), "prompt_mask": torch.tensor([[0, 1, 0]])}

    assert ReftDataCollator(collate)([example("ppa")])["prompt_mask"].tolist() == [[0, 1, 0]]


def test_a_batch_that_says_nothing_of_its_prompts_is_refused() -> None:
    collate = ReftDataCollator(default_data_collator)
    with pytest.raises(PromptBoundaryError, match="neither labels nor a prompt_mask"):
        collate([{"input_ids": [5, 6]}])
    with pytest.raises(PromptBoundaryError, match=r"labels have shape \[2\]"):
        collate([{"input_ids": [5, 6], "label": 1}, {"input_ids": [5, 6], "label": 0}])
    with pytest.raises(LocationError, match="torch tensors"):
        ReftDataCollator(lambda features: {"input_ids": [[5, 6]]})([example("pa")])
    with pytest.raises(LocationError, match="a batch is a mapping"):
        ReftDataCollator(lambda features: features)([example("pa")])


@pytest.mark.parametrize(
    "collator",
    [
        None,
        lambda: DataCollatorForTokenClassification(tokenizer()),
        lambda: DataCollatorForLanguageModeling(copy.deepcopy(tokenizer()), mlm=True, mlm_probability=0.1),
    ],
)
def test_collators_whose_labels_tell_no_prompt_are_refused(collator: Any) -> None:
    copied = None if collator is None else _with_mask_token(collator)
    with pytest.raises(ConfigError):
        ReftDataCollator(copied)  # type: ignore[arg-type]


def _with_mask_token(make: Callable[[], Any]) -> Any:
    made = tokenizer()
    made.mask_token = "<unk>"
    try:
        return make()
    finally:
        made.mask_token = None


def test_an_encoder_decoder_is_refused_or_told_apart() -> None:
    examples = [{"input_ids": [5, 6, 7], "labels": [8, 9]}, {"input_ids": [5, 6], "labels": [8, 9, 4, 4]}]
    with pytest.raises(PromptBoundaryError, match="stack='decoder'"):
        ReftDataCollator(DataCollatorForSeq2Seq(tokenizer()))(examples)
    batch = ReftDataCollator(DataCollatorForSeq2Seq(tokenizer()), stack="decoder")(examples)
    assert batch["prompt_mask"].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    model = reft_model("t5", positions="f1+l1", layers_pattern="decoder.block").train()
    with_labels = model(**{name: value for name, value in batch.items() if name != "prompt_mask"})
    start = model.get_base_model().prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    without = model(**{name: v for name, v in batch.items() if name != "labels"}, decoder_input_ids=start)
    assert torch.equal(with_labels.logits[0, :2], without.logits[0, :2])
    assert torch.equal(with_labels.logits[1], without.logits[1])
    with pytest.raises(ConfigError, match="'only' or 'decoder'"):
        ReftDataCollator(default_data_collator, stack="encoder")  # type: ignore[arg-type]
