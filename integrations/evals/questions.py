"""Rows and collated batches → questions: what a model is asked, and the answer it should give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError
from peft_reft.positions import Layout
from peft_reft.runtime.inputs import Explicit, call_inputs
from peft_reft.runtime.resolve import call_layout
from peft_reft.runtime.situation import Situation

__all__ = ["Question", "question_of_row", "questions_of_batch"]


@dataclass(frozen=True)
class Question:
    """What stands before an answer, and the answer.

    Attributes:
        ids: long `[length]`, the tokens to generate from.
        reference: the answer's text, or its tokens, long `[answer]`.
        marks: bool `[length]`, the prompt among `ids` where the batch states it; else None: all of them.
    """

    ids: Tensor
    reference: str | Tensor
    marks: Tensor | None = None


def questions_of_batch(batch: Mapping[str, Any]) -> list[Question]:
    """The questions of a collated batch with labels, padded or packed: one for every sequence that has an answer.

    A question is what stands before the first supervised label; its answer is the first run of supervised tokens. Of
    several turns this is the first. A sequence without a supervised label has no answer and is left out.

    Raises:
        PromptBoundaryError: no labels one per token, or an answer without a prompt before it.
        ConfigError: the batch states `intervention_locations`, or has no input ids.
    """
    call, labels = call_inputs(batch, "only"), batch.get("labels")
    if call is None or call.input_ids is None or "decoder_input_ids" in batch:
        raise ConfigError(
            f"the batch has {', '.join(batch)}",
            code="evals.batch",
            rule="questions are read from input_ids and labels [batch, seq] of a causal model",
            fix="give GenerationMetric its own rows; for an encoder-decoder use Seq2SeqTrainer with "
            "predict_with_generate=True",
        )
    if not isinstance(labels, Tensor) or labels.shape != (call.batch, call.length):
        shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise PromptBoundaryError(
            f"labels are {shape}, the tokens [{call.batch}, {call.length}]",
            code="positions.no_labels" if labels is None else "positions.labels",
            rule="an answer starts at the first label that is not -100",
            fix="evaluate on data with labels, or give GenerationMetric its own rows",
        )
    explicit, _ = Explicit.take(dict(batch))
    if explicit.locations is not None:
        raise ConfigError(
            "the batch states intervention_locations",
            code="evals.locations",
            rule="they name columns of prompt and answer together, and an answer is generated from the prompt alone",
            fix="leave the column out of the evaluation's data, and let the adapter's positions say what is edited",
        )
    layout = call_layout(call, Situation(explicit=explicit))
    return list(_questions(call.input_ids, labels, layout, stated=bool(explicit)))


def question_of_row(row: Mapping[str, Any], tokenizer: Any) -> Question | None:
    """The question of one row; None where tokenised rows have no answer.

    Args:
        row: `prompt` and `completion`, both text or both lists of messages; or `input_ids` and `labels`.
        tokenizer: tokenises as the trainer does: plainly, or by its chat template with the generation prompt.

    Raises:
        ConfigError: anything else.
        PromptBoundaryError: tokenised rows whose answer has no prompt.
    """
    if "input_ids" in row and "labels" in row:
        batch = {name: torch.as_tensor(row[name])[None] for name in ("input_ids", "labels")}
        return next(iter(questions_of_batch(batch)), None)
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = tokenizer(prompt)["input_ids"]
    elif isinstance(prompt, list) and isinstance(completion, list) and len(completion) == 1:
        tools = row.get("tools")
        encoded = tokenizer.apply_chat_template(
            prompt,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(row.get("chat_template_kwargs") or {}),
        )
        ids, completion = encoded["input_ids"], completion[0]["content"]
    else:
        raise ConfigError(
            f"a row has {', '.join(f'{name} ({type(value).__name__})' for name, value in row.items())}",
            code="evals.rows",
            rule="rows have 'prompt' and 'completion' (text, or messages with one answer) or 'input_ids' and 'labels'",
        )
    return Question(torch.as_tensor(ids, dtype=torch.long), completion)


def _questions(ids: Tensor, labels: Tensor, layout: Layout, *, stated: bool) -> Iterator[Question]:
    starts = layout.starts()
    for row in range(ids.shape[0]):
        for start in sorted(set(starts[row][layout.real[row]].tolist())):
            columns = (layout.real[row] & (starts[row] == start)).nonzero().squeeze(1)
            supervised = labels[row, columns] != -100
            if not bool(supervised.any()):
                continue
            first = int(supervised.long().argmax())
            stop = first + int(supervised[first:].long().cumprod(0).sum())
            marks = layout.prompt[row, columns[:first]]
            if first == 0 or not (stated or bool(marks.any())):
                raise PromptBoundaryError(
                    f"a sequence of {len(columns)} tokens in row {row} has an answer and no prompt",
                    code="positions.no_prompt",
                    rule="an answer is generated from what stands before the first supervised label; in a packed row "
                    "one token counts as none",
                    fix="evaluate on prompts and completions (completion-only loss), or give GenerationMetric its own "
                    "rows",
                )
            yield Question(ids[row, columns[:first]], ids[row, columns[first:stop]], marks if stated else None)
