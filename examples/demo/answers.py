"""Greedy answers to a skill's questions, in left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .skills import Pair

__all__ = ["answers", "exact"]

BATCH = 40


def answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], *, length: int = 24
) -> list[str]:
    """One answer per question, without special tokens."""
    tokenizer.padding_side = "left"
    model.eval()
    found: list[str] = []
    for start in range(0, len(questions), BATCH):
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in questions[start : start + BATCH]
        ]
        batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            tokens = model.generate(**batch, max_new_tokens=length, do_sample=False)
        found += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def exact(pairs: Sequence[Pair], given: Sequence[str]) -> int:
    """How many answers are exactly as taught."""
    return sum(answer == text for (_, answer), text in zip(pairs, given, strict=True))
