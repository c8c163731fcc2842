"""Sequence and token classification in stock `Trainer`: every attended token is prompt, whatever the labels are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import peft_reft.model
from contract.recording import differing, inputs_of
from contract.test_mutants import padding_ignored, shifted

from .tiny_sft import encoded, losses, reft, tokenizer, trainable

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "num_labels": 3,
}
BERT = {**COMMON, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {**COMMON, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1}
BLOCKS = {"bert": "bert.encoder.layer", "llama": "model.layers"}
MODELS: dict[tuple[str, str], Callable[[], PreTrainedModel]] = {
    ("bert", "SEQ_CLS"): lambda: BertForSequenceClassification(BertConfig(**BERT)),
    ("bert", "TOKEN_CLS"): lambda: BertForTokenClassification(BertConfig(**BERT)),
    ("llama", "SEQ_CLS"): lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)),
    ("llama", "TOKEN_CLS"): lambda: LlamaForTokenClassification(LlamaConfig(**LLAMA, classifier_dropout=0.0)),
}
CASES = [(*key, side) for key in MODELS for side in ("right", "left")]


def rows(task: str) -> Dataset:
    """One label a row; or one a token, of which some −100 stand first, between and last, as with word pieces."""
    found = []
    for number, (ids, _) in enumerate(encoded()):
        labels = [-100 if at % 3 == number % 3 else at % 3 for at in range(len(ids))]
        found.append({"input_ids": ids, **({"label": number % 3} if task == "SEQ_CLS" else {"labels": labels})})
    return Dataset.from_list(found)


def base(name: str, task: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name, task]()


def trainer_of(folder: Path, name: str, task: str, side: str, *, given: Any = None, **config: Any) -> Trainer:
    fields = given or {}
    made = copy.deepcopy(tokenizer())
    made.padding_side = side
    made.model_input_names = ["input_ids", "attention_mask"]
    collator = DataCollatorWithPadding if task == "SEQ_CLS" else DataCollatorForTokenClassification
    args = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **fields.pop("args", {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(base(name, task), reft(task_type=task, positions="f1+l2", **config))
    data = rows(task)
    return Trainer(model, args, train_dataset=data, eval_dataset=data, data_collator=collator(made), **fields)


def batch_of(trainer: Trainer) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def check_edited_tokens(folder: Path, name: str, task: str, side: str) -> None:
    """The first and the last two attended tokens of every row, with labels and without, training or not."""
    trainer = trainer_of(folder, name, task, side, layers_to_transform=[0])
    batch, model = batch_of(trainer), trainer.model
    expected = set()
    for row, mask in enumerate(batch["attention_mask"].tolist()):
        columns = [at for at, real in enumerate(mask) if real]
        expected |= {(row, column) for column in (columns[0], *columns[-2:])}
    assert (batch["attention_mask"] == 0).any()
    reader = model.get_base_model().get_submodule(f"{BLOCKS[name]}.1")
    unlabelled = {key: value for key, value in batch.items() if key != "labels"}
    for training in (True, False):
        for inputs in (batch, unlabelled):
            model.train(training)
            with inputs_of(reader) as edited:
                model(**inputs)
            with model.disable_adapter(), inputs_of(reader) as plain:
                model(**inputs)
            assert differing(edited[0], plain[0]) == expected


@pytest.mark.parametrize(("name", "task", "side"), CASES)
def test_the_edited_tokens_are_the_ends_of_the_attended_input(tmp_path: Path, name: str, task: str, side: str) -> None:
    check_edited_tokens(tmp_path, name, task, side)


def a_completion(patch: pytest.MonkeyPatch) -> None:
    """Labels of tokens would say where a prompt ends, and no labels would be an error."""
    patch.setattr(peft_reft.model, "_has_completion", lambda *args: True)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("mutant", [a_completion, padding_ignored, shifted])
def test_a_mutant_is_caught(tmp_path: Path, mutant: Callable[[pytest.MonkeyPatch], None], task: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises((AssertionError, ValueError)):
            check_edited_tokens(tmp_path, "llama", task, "right")


@pytest.mark.parametrize(("name", "task", "side"), [case for case in CASES if case[::2] != ("bert", "left")])
def test_loss_and_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, name: str, task: str, side: str) -> None:
    """The reference: unpadded rows, no labels in the forward, positions by hand, cross entropy written out.

    BERT's absolute position embeddings count padding on the left: its rows one by one are other rows.
    """
    trainer = trainer_of(tmp_path, name, task, side, share_weights=False)
    model, batch = trainer.model.train(), batch_of(trainer)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    found = taken_gradients(model)
    data = [dict(row) for row in trainer.train_dataset]
    total: Any = 0
    count = sum(1 if task == "SEQ_CLS" else sum(label != -100 for label in row["labels"]) for row in data)
    for row in data:
        length = len(row["input_ids"])
        where = torch.tensor([[[0, -1], [length - 2, length - 1]]])
        logits = model(input_ids=torch.tensor([row["input_ids"]]), intervention_locations=where).logits
        labels = torch.tensor([row["label"]] if task == "SEQ_CLS" else row["labels"])
        scores = logits.reshape(-1, 3)[labels != -100].log_softmax(-1)
        total = total - scores.gather(1, labels[labels != -100][:, None]).sum() / count
    assert_close(loss, total, rtol=1e-4, atol=1e-5)
    total.backward()
    expected = taken_gradients(model)
    assert found.keys() == expected.keys() == trainable(model).keys()
    for parameter, gradient in expected.items():
        assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-6)
    assert sum(gradient.abs().max() > 1e-7 for gradient in expected.values()) > len(expected) // 2


def taken_gradients(model: nn.Module) -> dict[str, Any]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("saved", [None, ["score", "classifier"]], ids=["the default", "said"])
@pytest.mark.parametrize(("name", "task"), MODELS)
def test_it_learns_and_the_head_is_saved_with_the_edit(
    tmp_path: Path, name: str, task: str, saved: list[str] | None
) -> None:
    trainer = trainer_of(tmp_path, name, task, "right", modules_to_save=saved)
    assert any("modules_to_save" in parameter for parameter in trainable(trainer.model))
    before = trainable(trainer.model)
    found = losses(trainer)
    assert found[-1] < found[0]
    assert all(not torch.equal(before[key], after) for key, after in trainable(trainer.model).items())
    trainer.save_model(str(tmp_path / "adapter"))
    other = base(name, task)
    with torch.no_grad():
        for parameter in (other.score if hasattr(other, "score") else other.classifier).parameters():
            parameter.zero_()  # what the file brings must win
        loaded = PeftModel.from_pretrained(other, str(tmp_path / "adapter")).eval()
        batch = batch_of(trainer)
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_metrics_and_label_smoothing_need_no_collator_of_ours(tmp_path: Path, name: str, task: str) -> None:
    """They take the labels out of the batch, and nothing depends on them."""
    seen: list[Any] = []

    def metric(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"rows": float(len(prediction.predictions))}

    given = {"compute_metrics": metric, "args": {"label_smoothing_factor": 0.1}}
    trainer = trainer_of(tmp_path, name, task, "right", given=given)
    assert trainer.evaluate()["eval_rows"] == 4
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    assert np.array_equal(seen[0], logits.numpy())
    labels = batch["labels"].reshape(-1)
    expected = nn.functional.cross_entropy(
        logits.reshape(-1, 3)[labels != -100], labels[labels != -100], label_smoothing=0.1
    )
    assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected, rtol=1e-4, atol=1e-5)
    found = losses(trainer)
    assert found[-1] < found[0]
