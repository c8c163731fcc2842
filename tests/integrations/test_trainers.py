"""Around the trainer: other models, other data sets, new tokens, and transformers' own `Trainer`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from peft_reft import MixedReftModel
from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError
from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer

from .reading import documents_of, edited_tokens
from .tiny_sft import (
    base_model,
    conversations,
    encoded,
    first_batch,
    losses,
    pairs,
    reft,
    sft_config,
    tokenizer,
    trainable,
    trainer_for,
)


def test_a_lora_and_a_reft_in_one_model(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    seen: list[Any] = []

    def metric(prediction: Any) -> dict[str, float]:
        seen.append(torch.as_tensor(prediction.predictions))
        return {}

    model = MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft()})
    given = {"eval_dataset": pairs(), "compute_metrics": metric}
    trainer = trainer_for(tmp_path, kind=ReftSFTTrainer, model=model, given=given)
    before = trainable(model)
    assert {name.split(".default")[0].split(".edit")[0].rsplit(".", 1)[1] for name in before} == {
        "lora_A",
        "lora_B",
        "reft_0",
    }
    losses(trainer)
    assert not any(torch.equal(before[name], parameter) for name, parameter in trainable(model).items())
    trainer.evaluate()
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    del batch["prompt_mask"]
    with torch.no_grad():
        assert torch.equal(seen[0], model.eval()(**batch).logits)
    with pytest.raises(ConfigError, match="'edit'"):
        trainer_for(
            tmp_path, kind=ReftSFTTrainer, model=model, packing=True, packing_strategy="wrapped", max_length=16
        )


def test_a_streamed_data_set(tmp_path: Path) -> None:
    stream = pairs().to_iterable_dataset()
    fields = {"label_smoothing_factor": 0.1}
    streamed = trainer_for(tmp_path, stream, kind=ReftSFTTrainer, **fields)
    assert_close(losses(streamed), losses(trainer_for(tmp_path, kind=ReftSFTTrainer, **fields)), rtol=1e-5, atol=1e-6)


def test_new_tokens_of_a_chat_template_train_beside_the_edit(tmp_path: Path) -> None:
    """`chat_template_path` makes TRL add `trainable_token_indices` and `modules_to_save` to the adapter's config."""
    source = copy.deepcopy(tokenizer())
    source.add_tokens(["<|new|>"], special_tokens=True)
    source.chat_template = source.chat_template.replace("<|assistant|>", "<|new|>")
    source.save_pretrained(tmp_path / "tokenizer")

    def made(**config: Any) -> ReftSFTTrainer:
        return ReftSFTTrainer(
            model=base_model(),
            args=sft_config(tmp_path, chat_template_path=str(tmp_path / "tokenizer")),
            train_dataset=conversations(),
            processing_class=copy.deepcopy(tokenizer()),
            peft_config=reft(**config),
        )

    reading = made(positions="f1+l2", layers_to_transform=[0])
    batch = first_batch(reading)
    new = source.convert_tokens_to_ids("<|new|>")
    ends = [line.index(new) for line in batch["input_ids"].tolist()]  # the template's last word before the answer
    expected = {(row, column) for row, end in enumerate(ends) for column in (0, end - 1, end)}
    mask = {"prompt_mask": batch.pop("prompt_mask")}
    assert edited_tokens(reading.model, batch) == edited_tokens(reading.model, {**batch, **mask}) == expected
    trainer = made()
    names = "".join(trainable(trainer.model))
    assert all(part in names for part in ("trainable_tokens_delta", "modules_to_save", ".reft."))
    found = losses(trainer)
    assert found[-1] < found[0]
    trainer.save_model(str(tmp_path / "adapter"))
    batch = first_batch(trainer)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        loaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "adapter")).eval()
        assert torch.equal(loaded(**batch).logits, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_transformers_trainer_with_label_smoothing(tmp_path: Path, workers: int) -> None:
    """It takes the labels out of the batch before the forward; with our collator or without the prompts are known."""
    left = copy.deepcopy(tokenizer())
    left.padding_side = "left"
    rows = Dataset.from_list([{"input_ids": ids, "labels": [-100] * n + ids[n:]} for ids, n in encoded()])
    args = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        label_smoothing_factor=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=workers,
    )

    def trainer(collator: Any) -> Trainer:
        torch.manual_seed(42)
        return Trainer(get_peft_model(base_model(), reft()), args, train_dataset=rows, data_collator=collator)

    found = losses(trainer(ReftDataCollator(DataCollatorForSeq2Seq(left))))
    # the same steps by TRL, which pads on the right
    by_trl = losses(trainer_for(tmp_path, kind=ReftSFTTrainer, label_smoothing_factor=0.1))
    assert_close(found, by_trl, rtol=1e-4, atol=1e-5)
    assert losses(trainer(DataCollatorForSeq2Seq(left))) == found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_text_in_the_trainer_of_transformers(tmp_path: Path, wrapped: bool, side: str) -> None:
    """`DataCollatorForLanguageModeling` makes labels of all tokens: prefixes count from the text, no suffix is known.

    The reference of loss and gradients: one text a forward, without labels, positions by hand. Padded on the left the
    base model's own loss is another: the padding before a text predicts its first token.
    """
    made = copy.deepcopy(tokenizer())
    made.padding_side = side
    rows = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids, _ in encoded()])
    args = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    plain = DataCollatorForLanguageModeling(made, mlm=False)
    collator: Any = ReftDataCollator(plain) if wrapped else plain

    def trainer(**config: Any) -> Trainer:
        torch.manual_seed(42)
        return Trainer(get_peft_model(base_model(), reft(**config)), args, train_dataset=rows, data_collator=collator)

    for spec in ("l1", "f1+l1", "prompt"):
        with pytest.raises(PromptBoundaryError, match="need a prompt"):
            losses(trainer(positions=spec))
    reading = trainer(positions="f3", layers_to_transform=[0])
    batch = first_batch(reading)
    starts = {(row, at + column) for row, at, _ in documents_of(batch) for column in range(3)}
    assert edited_tokens(reading.model, batch, fused=False) == starts
    steps = losses(trainer(positions="f3"))
    assert steps[-1] < steps[0]
    if side == "left":
        return
    made_trainer = trainer(positions="f3", layers_to_transform=[0, 1])  # after the last block a prefix is not read
    model = made_trainer.model.train()
    loss = made_trainer.compute_loss(model, first_batch(made_trainer))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected: Any = 0
    for ids, _ in encoded():
        where = torch.tensor([[[0, 1, 2]]])
        scores = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0, :-1].log_softmax(-1)
        expected = expected - scores.gather(1, torch.tensor(ids[1:])[:, None]).sum()
    expected = expected / sum(len(ids) - 1 for ids, _ in encoded())
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 1e-7, name
            assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_metrics_in_the_trainer_of_transformers_need_no_collator_of_ours(tmp_path: Path, verb: str) -> None:
    """Unlike TRL's, it takes the logits of the forward with labels."""
    seen: list[Any] = []

    def metric(prediction: Any) -> dict[str, float]:
        seen.append(torch.as_tensor(prediction.predictions))
        return {"rows": float(len(prediction.predictions))}

    rows = Dataset.from_list([{"input_ids": ids, "labels": [-100] * n + ids[n:]} for ids, n in encoded()])
    args = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    model = get_peft_model(base_model(), reft())
    collator = DataCollatorForSeq2Seq(tokenizer())
    trainer = Trainer(model, args, eval_dataset=rows, data_collator=collator, compute_metrics=metric)
    found = trainer.evaluate() if verb == "evaluate" else trainer.predict(rows).metrics
    assert {"eval_rows", "test_rows"} & found.keys()
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        expected = model.eval()(**batch)
        assert torch.equal(seen[0], expected.logits)
        del batch["labels"]
        assert not torch.allclose(seen[0], model(**batch).logits, atol=1e-2)  # the prefill is another
