"""Two adapters on a tiny model, and prompts of two skills that use other halves of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from contract.tiny import reft_model
from peft_reft import ReftConfig

__all__ = ["SKILLS", "answered", "prompts", "two_skills"]

SKILLS = {"default": (4, 30), "other": (34, 60)}
"""Skill, which is an adapter's name → the range of its prompts' ids."""


def two_skills(**other: Any) -> PeftModel:
    model = reft_model("llama", r=2, positions="prompt", init_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        given = {"r": 2, "positions": "l2", "init_weights": False, **other}
        model.add_adapter("other", ReftConfig(task_type="CAUSAL_LM", **given))
    return model.eval()


def prompts(skill: str, seed: int, rows: int = 8, length: int = 7) -> dict[str, Tensor]:
    low, high = SKILLS[skill]
    ids = torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answered(skill: str, seed: int) -> dict[str, Tensor]:
    batch = prompts(skill, seed)
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    return {**batch, "labels": labels}
