"""TRL's stock `RewardTrainer`: no labels at all, and every attended token of chosen and rejected is prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

import peft_reft.model
from contract.recording import differing, inputs_of
from contract.test_mutants import padding_ignored, shifted

from .tiny_sft import PAIRS, losses, reft, tokenizer, trainable

REJECTED = [" night", " grass and milk and coal", " red", " black"]


def base() -> LlamaForSequenceClassification:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config)


def trainer_of(folder: Path, *, config: Any = None, given: Any = None, **fields: Any) -> RewardTrainer:
    named = {"task_type": "SEQ_CLS", "positions": "f1+l2", "modules_to_save": ["score"], **(config or {})}
    args = RewardConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **{"gradient_checkpointing": False, "save_strategy": "no", **fields},
    )
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}
        for row, other in zip(PAIRS, REJECTED, strict=True)
    ]
    return RewardTrainer(
        model=base(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=reft(**named),
        **(given or {}),
    )


def batch_of(trainer: RewardTrainer) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def check_edited_tokens(folder: Path) -> None:
    """The first and the last two of every sequence, padding on the right left alone."""
    trainer = trainer_of(folder, config={"layers_to_transform": [0]})
    model, batch = trainer.model, batch_of(trainer)
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape[0] == 8
    lengths = batch["attention_mask"].sum(1).tolist()
    assert min(lengths) < batch["input_ids"].shape[1]
    reader = model.get_base_model().get_submodule("model.layers.1")
    for training in (True, False):
        model.train(training)
        with inputs_of(reader) as edited:
            model(**batch)
        with model.disable_adapter(), inputs_of(reader) as plain:
            model(**batch)
        expected = {(row, at) for row, length in enumerate(lengths) for at in (0, length - 2, length - 1)}
        assert differing(edited[0], plain[0]) == expected


def test_the_edited_tokens_are_the_ends_of_both_answers(tmp_path: Path) -> None:
    check_edited_tokens(tmp_path)


def a_completion(patch: pytest.MonkeyPatch) -> None:
    """A reward model is taken for one whose sequences have a prompt and a completion."""
    patch.setattr(peft_reft.model, "_has_completion", lambda *args: True)


@pytest.mark.parametrize("mutant", [a_completion, padding_ignored, shifted])
def test_a_mutant_is_caught(tmp_path: Path, mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises((AssertionError, ValueError)):
            check_edited_tokens(tmp_path)


def test_loss_and_gradients_are_those_of_the_sequences_one_by_one(tmp_path: Path) -> None:
    """The reference: every sequence by itself without padding, positions by hand, Bradley-Terry written out."""
    trainer = trainer_of(tmp_path, config={"share_weights": False})
    model, batch = trainer.model.train(), batch_of(trainer)
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rewards = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        row = ids[mask]
        where = torch.tensor([[[0, -1], [len(row) - 2, len(row) - 1]]])
        rewards.append(model(input_ids=row[None], intervention_locations=where).logits[0, 0])
    chosen, rejected = torch.stack(rewards[:4]), torch.stack(rewards[4:])
    expected = torch.log(1 + torch.exp(rejected - chosen)).mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    assert found.keys() == trainable(model).keys()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert sum(gradient.abs().max() > 1e-7 for gradient in found.values()) > len(found) // 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_and_the_score_head_is_saved_with_the_edit(tmp_path: Path, checkpointing: bool) -> None:
    """Also with gradient checkpointing, which TRL turns on unless it is told not to."""
    trainer = trainer_of(tmp_path, gradient_checkpointing=checkpointing)
    before = trainable(trainer.model)
    assert any(".score.modules_to_save." in name for name in before)
    found = losses(trainer)
    assert found[-1] < found[0]
    assert all(not torch.equal(before[name], after) for name, after in trainable(trainer.model).items())
    trainer.save_model(str(tmp_path / "adapter"))
    other = base()
    with torch.no_grad():
        other.score.weight.zero_()  # what the file brings must win
        loaded = PeftModel.from_pretrained(other, str(tmp_path / "adapter")).eval()
        batch = batch_of(trainer)
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


def test_it_resumes_to_the_last_bit(tmp_path: Path) -> None:
    fields = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", **fields)
    expected = losses(whole)
    resumed = trainer_of(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == expected
    for name, parameter in trainable(whole.model).items():
        assert torch.equal(parameter, trainable(resumed.model)[name])
