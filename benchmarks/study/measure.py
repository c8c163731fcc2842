"""What a model can, and how far it is from its base: exact answers, loss, loss on text, KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_reft.runtime import state_of

from .rows import IGNORED, Row, batch_of, in_batches

__all__ = ["Answers", "answers", "divergence", "forward", "on_answers", "text_loss"]

BATCH = 48


@dataclass(frozen=True)
class Answers:
    """How a model answers rows.

    Attributes:
        right: whether greedy decoding gives the row's answer and ends, bool `[rows]`.
        loss: mean over the tokens of all answers.
        logs: log-probabilities at each token of each answer, `[tokens, vocabulary]`, rows in order;
            None where they were not asked for.
    """

    right: Tensor
    loss: float
    logs: Tensor | None

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right.float().mean().item()


def forward(model: Any, batch: dict[str, Tensor], last: int | None = None) -> Tensor:
    """Logits `[batch, seq, vocabulary]` of a batch with labels; virtual tokens of a tuned prompt are left out.

    The model is told where prompts end instead of the labels: it then makes no loss of its own, over all tokens.

    Args:
        model: PEFT's, or a plain one.
        batch: of `batch_of`.
        last: columns at the end of which logits are made; None for all.
    """
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if getattr(model, "peft_config", None) and state_of(model.get_base_model()) is not None:
        given["prompt_lengths"] = (batch["labels"] != IGNORED).int().argmax(-1)
    width = batch["input_ids"].shape[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.float32):
        logits: Tensor = model(**given, logits_to_keep=width if last is None else last).logits
    return logits


def on_answers(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and labels of the columns that answers begin to be told in: `[batch, some, vocabulary]`, `[batch, some]`.

    Logits of a column are of its own label: they are shifted already.
    """
    labels = batch["labels"]
    last = labels.shape[1] - int((labels != IGNORED).int().argmax(-1).min()) + 1
    return forward(model, batch, last)[:, :-1], labels[:, labels.shape[1] - last + 1 :]


@torch.no_grad()
def answers(model: Any, rows: Sequence[Row], pad: int, *, logs: bool = False) -> Answers:
    """Greedy decoding gives an answer exactly where, the answer's start being given, each next token is the likeliest:
    so one forward of prompt and answer tells, and nothing is generated."""
    model.eval()
    right = torch.zeros(len(rows), dtype=torch.bool)
    kept: list[Tensor] = [torch.empty(0)] * len(rows)
    total, tokens = 0.0, 0
    for numbers in in_batches(rows, BATCH):
        batch = batch_of([rows[number] for number in numbers], pad)
        logits, labels = on_answers(model, batch)
        logits, asked = logits.float(), labels != IGNORED
        right[numbers] = ((logits.argmax(-1) == labels) | ~asked).all(-1)
        total += F.cross_entropy(logits[asked], labels[asked], reduction="sum").item()
        tokens += int(asked.sum())
        if logs:
            for number, own, where in zip(numbers, logits, asked, strict=True):
                kept[number] = own[where].log_softmax(-1)
    return Answers(right, total / tokens, torch.cat(kept) if logs else None)


def divergence(tuned: Tensor, base: Tensor) -> float:
    """Mean KL(tuned ‖ base) over tokens; log-probabilities `[tokens, vocabulary]`."""
    one, other = tuned.float(), base.float()
    return (one.exp() * (one - other)).sum(-1).mean().item()


@torch.no_grad()
def text_loss(model: Any, text: Tensor) -> float:
    """Mean loss per token of general text `[blocks, length]`, of which nothing is a prompt's completion.

    Each block is given as a prompt of half its length and a completion: adapters that edit prompts edit that half.
    """
    model.eval()
    total, tokens = 0.0, 0
    for part in text.split(8):
        labels = part.clone()
        labels[:, : part.shape[1] // 2] = IGNORED
        batch = {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": labels}
        logits, completed = on_answers(model, batch)
        total += F.cross_entropy(logits.flatten(0, 1).float(), completed.flatten(), reduction="sum").item()
        tokens += completed.numel()
    return total / tokens
