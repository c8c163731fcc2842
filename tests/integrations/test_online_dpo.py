"""TRL's `OnlineDPOTrainer`, stock: it holds prompt and answer apart, and its forwards have no labels and no batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from .preferences import ROUTINE, edits_of_passes
from .test_online import reward
from .tiny_sft import PAIRS, base_model, reft, tokenizer, trainable

online_dpo = pytest.importorskip("trl.experimental.online_dpo", reason="this TRL has no OnlineDPOTrainer")

TOKENS = 5


def online_dpo_trainer(folder: Path, positions: str) -> Any:
    args = online_dpo.OnlineDPOConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        max_new_tokens=TOKENS,
        max_length=200,
        learning_rate=1e-2,
        gradient_checkpointing=False,
        **ROUTINE,
    )
    return online_dpo.OnlineDPOTrainer(
        model=base_model(),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS]),
        processing_class=tokenizer(),
        peft_config=reft(positions=positions, layers_to_transform=[0]),
    )


def test_the_ends_of_every_prompt_are_edited_in_generation_and_in_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = online_dpo_trainer(tmp_path, "f1+l2")
    before = trainable(trainer.model)
    masks: list[Tensor] = []
    forward = type(trainer)._forward

    def noted(self: Any, model: Any, prompt_ids: Tensor, prompt_mask: Tensor, *rest: Any) -> Any:
        masks.append(prompt_mask)
        return forward(self, model, prompt_ids, prompt_mask, *rest)

    monkeypatch.setattr(type(trainer), "_forward", noted)
    with edits_of_passes(trainer.model) as passes:
        trainer.train()
    asked = [found for found in passes if found]
    expected = []
    for mask in masks[::2]:  # of the policy; the reference has no edit
        ends = set()
        for row, real in enumerate(mask.tolist()):
            columns = [column for column, one in enumerate(real) if one]
            ends |= {(row, column) for column in (columns[0], *columns[-2:])}
        expected += [ends, ends]  # the prefill of the generation, and the loss
    assert len(masks) == 4
    assert asked == expected
    assert all(not torch.equal(before[name], after) for name, after in trainable(trainer.model).items())
