"""Stock `SFTTrainer` with nothing but `peft_config=ReftConfig(...)`: every layout of a batch trains the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.testing import assert_close

from .reading import LAYOUTS, edited_tokens, expected_tokens
from .tiny_sft import (
    PAIRS,
    base_model,
    conversations,
    encoded,
    first_batch,
    losses,
    pairs,
    reft,
    trainable,
    trainer_for,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_edited_tokens_are_the_ends_of_every_prompt(tmp_path: Path, layout: str) -> None:
    config = reft(positions="f1+l3", layers_to_transform=[0])
    trainer = trainer_for(tmp_path, config=config, **LAYOUTS[layout])
    batch = first_batch(trainer)
    assert edited_tokens(trainer.model, batch) == expected_tokens(batch, first=1, last=3)


@pytest.mark.parametrize("data", [pairs, conversations], ids=["pairs", "conversations"])
@pytest.mark.parametrize("layout", ["padding_free", "packed"])
def test_losses_do_not_depend_on_the_layout(tmp_path: Path, data: Any, layout: str) -> None:
    padded = losses(trainer_for(tmp_path, data()))
    assert len(set(padded)) == 3
    assert padded[-1] < padded[0]
    assert_close(losses(trainer_for(tmp_path, data(), **LAYOUTS[layout])), padded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multiple", [8, 16])
@pytest.mark.parametrize("layout", ["padded", "padding_free"])
def test_padding_to_a_multiple_changes_nothing(tmp_path: Path, layout: str, multiple: int) -> None:
    # a padding-free row is filled up with sequences of one token: they are no documents without a prompt
    one, other = (
        trainer_for(tmp_path, pairs(PAIRS[:3]), pad_to_multiple_of=pad, **LAYOUTS[layout]) for pad in (None, multiple)
    )
    assert first_batch(one)["input_ids"].shape[1] % multiple != 0
    assert first_batch(other)["input_ids"].shape[1] % multiple == 0
    assert_close(losses(one), losses(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_documents_one_by_one(tmp_path: Path, layout: str) -> None:
    """The reference is a loop over documents, plain forwards without labels, and positions given by hand."""
    config = reft(share_weights=False, layers_to_transform=[0, 1])  # a prefix edited after the last block is not read
    trainer = trainer_for(tmp_path, config=config, **LAYOUTS[layout])
    model = trainer.model.train()
    loss = trainer.compute_loss(model, first_batch(trainer))
    loss.backward()
    found = taken_gradients(model)
    total = sum(len(ids) - length for ids, length in encoded())
    for ids, length in encoded():
        row = torch.tensor([ids])
        where = torch.tensor([[[0, 1], [length - 2, length - 1]]])
        logits = model(input_ids=row, intervention_locations=where).logits[0]
        targets = row[0, length:]
        (torch.nn.functional.cross_entropy(logits[length - 1 : -1], targets, reduction="sum") / total).backward()
    expected = taken_gradients(model)
    assert found.keys() == expected.keys() == trainable(model).keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_chunked_loss_is_the_model_s_own(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's loss goes past the model's own forward, in chunks: here three tokens each, the last one not full."""
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 3)
    trainer = trainer_for(tmp_path, **LAYOUTS[layout])
    model, batch = trainer.model.train(), first_batch(trainer)
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    found = taken_gradients(model)
    own = model(**batch).loss
    assert_close(loss, own, rtol=1e-5, atol=1e-6)
    own.backward()
    for name, gradient in taken_gradients(model).items():
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def taken_gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", [{"use_reentrant": True}, {"use_reentrant": False}, None], ids=str)
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, layout: str, how: dict[str, bool] | None) -> None:
    fields = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": how}
    plain, checkpointed = (trainer_for(tmp_path, **LAYOUTS[layout], **kind) for kind in ({}, fields))
    assert losses(plain) == losses(checkpointed)
    assert checkpointed.model.get_base_model().model.layers[0].gradient_checkpointing
    for name, parameter in trainable(plain.model).items():
        assert torch.equal(parameter, trainable(checkpointed.model)[name])


def test_only_the_adapter_is_trained(tmp_path: Path) -> None:
    base = base_model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    trainer = trainer_for(tmp_path, model=base, given={"peft_config": reft()})
    start = trainable(trainer.model)
    losses(trainer)
    assert all(".reft." in name for name in start)
    assert all(not torch.equal(start[name], after) for name, after in trainable(trainer.model).items())
    after = {name: p for name, p in base.named_parameters() if ".reft." not in name}
    assert before.keys() == after.keys()
    assert all(torch.equal(p, after[name]) for name, p in before.items())


def test_the_model_may_have_its_adapter_already(tmp_path: Path) -> None:
    torch.manual_seed(42)  # as the trainer does before it makes an adapter
    given = trainer_for(tmp_path, model=get_peft_model(base_model(), reft()))
    assert losses(given) == losses(trainer_for(tmp_path))


def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = trainer_for(tmp_path)
    parts = trainer_for(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_close(losses(whole), losses(parts), rtol=1e-5, atol=1e-6)


def test_evaluation_is_the_loss_without_dropout(tmp_path: Path) -> None:
    config = reft(dropout=0.5)
    evaluating = {"given": {"eval_dataset": pairs()}, "eval_strategy": "steps", "eval_steps": 1}
    found = {}
    for name, layout in LAYOUTS.items():
        trainer = trainer_for(tmp_path, config=config, **evaluating, **layout, learning_rate=0.0)
        trainer.train()
        found[name] = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(found[name]) == 3
        assert len(set(found[name])) == 1
    reference = trainer_for(tmp_path, config=config)
    batch = first_batch(reference)
    with torch.no_grad():
        expected = reference.model.eval()(**batch).loss.item()
    assert_close([values[0] for values in found.values()], [expected] * 3, rtol=1e-5, atol=1e-6)


def test_dft_is_the_loss_of_its_paper(tmp_path: Path) -> None:
    for layout in LAYOUTS.values():
        trainer = trainer_for(tmp_path, loss_type="dft", **layout)
        with torch.no_grad():
            found = trainer.compute_loss(trainer.model, first_batch(trainer))
            expected, total = torch.zeros(()), 0
            for ids, length in encoded():
                row = torch.tensor([ids])
                logits = trainer.model(input_ids=row, prompt_lengths=torch.tensor([length])).logits[0]
                chosen = logits[length - 1 : -1].log_softmax(-1).gather(1, row[0, length:, None])
                expected, total = expected - (chosen * chosen.exp()).sum(), total + len(ids) - length
        assert_close(found, expected / total)
