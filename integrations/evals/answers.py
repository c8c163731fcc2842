"""Questions → answers: left-padded batches through `generate`, with the model left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime import state_of
from peft_reft.runtime.evaluating import device_of, evaluating

from .questions import Question

__all__ = ["answers_to", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode and the random numbers are what they were."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model):
        yield


def answers_to(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch_size: int,
    generation: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """(predictions, references), one of each per question: text without special tokens and surrounding space.

    Args:
        model: has `generate`; in evaluation mode.
        tokenizer: decodes; its padding side is neither read nor set.
        questions: in this order.
        batch_size: questions per call of `generate`.
        generation: keywords of `generate`.

    Raises:
        ConfigError: the tokenizer has no token to pad with, or `generate` returns several answers to a question.
    """
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), None)
    if pad is None:
        raise ConfigError(
            "the tokenizer has neither pad_token nor eos_token", rule="a batch of prompts is padded", fix="set one"
        )
    needs_mask = _edits_every_turn(model)
    predictions: list[str] = []
    for start in range(0, len(questions), batch_size):
        chosen = questions[start : start + batch_size]
        inputs = _left_padded(chosen, pad, device_of(model), needs_mask=needs_mask)
        out = model.generate(**inputs, **{"pad_token_id": pad, **generation})  # type: ignore[operator]
        if out.shape[0] != len(chosen):
            raise ConfigError(
                f"generate returned {out.shape[0]} sequences for {len(chosen)} prompts",
                value=out.shape[0],
                rule="a metric compares one prediction with one reference",
                fix="leave num_return_sequences out",
            )
        predictions += _texts(tokenizer, out[:, inputs["input_ids"].shape[1] :])
    references = [
        question.reference if isinstance(question.reference, str) else _texts(tokenizer, [question.reference])[0]
        for question in questions
    ]
    return predictions, [reference.strip() for reference in references]


def _left_padded(
    questions: Sequence[Question], pad: int, device: torch.device, *, needs_mask: bool
) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, where stated or needed, `prompt_mask`, long `[batch, width]`."""
    width = max(len(question.ids) for question in questions)

    def stack(rows: Sequence[Tensor], value: int) -> Tensor:
        padded = [torch.nn.functional.pad(row.long(), (width - len(row), 0), value=value) for row in rows]
        return torch.stack(padded).to(device)

    ids = [question.ids for question in questions]
    batch = {"input_ids": stack(ids, pad), "attention_mask": stack([torch.ones_like(row) for row in ids], 0)}
    if needs_mask or any(question.marks is not None for question in questions):
        marks = [torch.ones_like(entry.ids) if entry.marks is None else entry.marks for entry in questions]
        batch["prompt_mask"] = stack(marks, 0)
    return batch


def _edits_every_turn(model: nn.Module) -> bool:
    """Whether an active adapter counts turn by turn: `generate` then has to be told that a question is one turn."""
    states = [state for state in map(state_of, model.modules()) if state is not None]
    return any(state.views[name].needs_turns for state in states for name in state.active())


def _texts(tokenizer: Any, ids: Any) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
