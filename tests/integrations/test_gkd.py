"""TRL's experimental `GKDTrainer`, stock: a student with edits follows a teacher, on given answers and on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.testing import assert_close

from .preferences import POLICIES, ROUTINE, edits_of_passes
from .tiny_sft import PAIRS, base_model, first_batch, reft, tokenizer, trainable

gkd = pytest.importorskip("trl.experimental.gkd", reason="this TRL has no GKDTrainer")

EDITED = {"positions": "f1+l2", "layers_to_transform": [0]}


def messages() -> Dataset:
    """The prompts and answers of `PAIRS` as conversations of two turns."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"].strip()},
                ]
            }
            for row in PAIRS
        ]
    )


def gkd_trainer(folder: Path, model: nn.Module, teacher: nn.Module | None = None, **fields: Any) -> Any:
    """Two steps of one batch of all four conversations."""
    given = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 64,
        "max_new_tokens": 5,
        "gradient_checkpointing": False,
        **ROUTINE,
        **fields,
    }
    made = gkd.GKDTrainer(
        model=model,
        teacher_model=base_model(seed=1) if teacher is None else teacher,
        args=gkd.GKDConfig(**given),
        train_dataset=messages(),
        processing_class=tokenizer(),
    )
    made.current_gradient_accumulation_steps = 1  # `train` sets it; steps are taken by hand here
    return made


def prompts() -> list[list[int]]:
    """The tokens of every prompt with its template, made without TRL."""
    made = tokenizer()
    return [
        made(f"<|user|> {row['prompt']} <|end|><|assistant|>", add_special_tokens=False)["input_ids"] for row in PAIRS
    ]


def ends_of(batch: dict[str, Any]) -> set[tuple[int, int]]:
    """`f1+l2` of left-padded rows, found by the tokens of their prompts."""
    found = set()
    for row, (ids, real) in enumerate(zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)):
        start = real.index(1)
        (length,) = {len(prompt) for prompt in prompts() if ids[start : start + len(prompt)] == prompt}
        found |= {(row, column) for column in (start, start + length - 2, start + length - 1)}
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_the_ends_of_every_prompt_are_edited_on_given_answers(tmp_path: Path, policy: str) -> None:
    trainer = gkd_trainer(tmp_path, POLICIES[policy](**EDITED), lmbda=0.0)
    batch = first_batch(trainer)
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    assert passes == [ends_of(batch)]


@pytest.mark.parametrize("policy", POLICIES)
def test_generation_and_loss_edit_the_same_tokens_on_own_answers(tmp_path: Path, policy: str) -> None:
    trainer = gkd_trainer(tmp_path, POLICIES[policy](**EDITED), lmbda=1.0)
    batch = first_batch(trainer)
    prompt = {"input_ids": batch["prompts"], "attention_mask": batch["prompt_attention_mask"]}
    with edits_of_passes(trainer.model) as passes:
        trainer.training_step(trainer.model, batch)
    expected = ends_of(prompt)
    assert [found for found in passes if found] == [expected, expected]
    assert batch["input_ids"].shape[1] == batch["prompts"].shape[1] + 5
    assert len(passes) == 6  # the prefill, four tokens, the loss


def test_the_answers_of_the_teacher_are_answers(tmp_path: Path) -> None:
    trainer = gkd_trainer(tmp_path, POLICIES["reft"](**EDITED), lmbda=0.0, seq_kd=True)
    batch = first_batch(trainer)
    given = batch["input_ids"].clone()
    with edits_of_passes(trainer.model) as passes:
        trainer.training_step(trainer.model, batch)
    assert passes == [ends_of(batch)]
    assert not torch.equal(batch["input_ids"], given)


def test_a_teacher_may_have_edits_of_its_own(tmp_path: Path) -> None:
    teacher = POLICIES["reft"](positions="l1", layers_to_transform=[0])
    trainer = gkd_trainer(tmp_path, POLICIES["reft"](**EDITED), teacher, lmbda=0.0)
    batch = first_batch(trainer)
    with edits_of_passes(teacher) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    last = {(row, max(column for at, column in ends_of(batch) if at == row)) for row in range(len(PAIRS))}
    assert passes == [last]


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, policy: str) -> None:
    model, teacher = POLICIES[policy](layers_to_transform=[0, 1]), base_model(seed=1)
    trainer = gkd_trainer(tmp_path, model, teacher, lmbda=0.0)
    batch = first_batch(trainer)
    loss = trainer.compute_loss(model.train(), batch)
    loss.backward()
    found = _taken_gradients(model)
    expected = _by_hand(model, teacher, batch, trainer.args.beta)
    assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys()
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def _by_hand(model: nn.Module, teacher: nn.Module, batch: dict[str, Any], beta: float) -> Tensor:
    """Agarwal et al. 2024, eq. 1, the mean over all tokens of all answers; one unpadded row after another."""
    found = []
    for ids, real in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        ids = ids[real.index(1) :]
        (length,) = {len(prompt) for prompt in prompts() if ids[: len(prompt)] == prompt}
        where = torch.tensor([[[0, 1, length - 2, length - 1]]])
        row = torch.tensor([ids])
        student = model(input_ids=row, intervention_locations=where).logits[0, length - 1 : -1].softmax(-1)
        with torch.no_grad():
            taught = teacher(input_ids=row).logits[0, length - 1 : -1].softmax(-1)
        mixed = beta * taught + (1 - beta) * student
        of_teacher, of_student = ((p * (p / mixed).log()).sum(-1) for p in (taught, student))
        found.append(beta * of_teacher + (1 - beta) * of_student)
    return torch.cat(found).mean()


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_a_short_run_trains_the_student_alone(tmp_path: Path, lmbda: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trainer = gkd.GKDTrainer(
            model=base_model(),
            teacher_model=base_model(seed=1),
            args=gkd.GKDConfig(
                output_dir=str(tmp_path),
                max_steps=2,
                lmbda=lmbda,
                max_new_tokens=5,
                learning_rate=1e-2,
                gradient_checkpointing=False,
                **ROUTINE,
            ),
            train_dataset=messages(),
            processing_class=tokenizer(),
            peft_config=reft(),
        )
    before = trainable(trainer.model)
    trainer.train()
    assert all(".reft" in name for name in before)
    assert all(not torch.equal(before[name], after) for name, after in trainable(trainer.model).items())
