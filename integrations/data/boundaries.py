"""A collated batch → its `prompt_mask`, by the very functions with which a forward infers the prompt from labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PromptBoundaryError
from peft_reft.positions import prompt_runs
from peft_reft.runtime.inputs import CallInputs, call_inputs
from peft_reft.runtime.resolve import call_layout
from peft_reft.runtime.situation import Situation

__all__ = ["StackName", "prompt_mask_of", "real_tokens"]

StackName = Literal["only", "decoder"]


def prompt_mask_of(batch: Mapping[str, Any], stack: StackName) -> Tensor:
    """The prompts of a batch with labels, long `[batch, seq]`: 1 on what an answer follows, 0 on answers and padding.

    The first run of ones of a sequence is its prompt; further turns are further runs. For a decoder `seq` counts the
    decoder's columns and the prompt is what stands up to the first supervised position.

    Raises:
        PromptBoundaryError: no labels, labels that are not one per token, or an encoder-decoder batch with
            `stack="only"`.
    """
    call = _call(batch, stack)
    labels = call.labels
    if not isinstance(labels, Tensor):
        raise PromptBoundaryError(
            "the collated batch has neither labels nor a prompt_mask",
            code="positions.no_labels",
            rule="a prompt ends before the first label that is not -100",
            fix="let the collator make labels, give the examples a prompt_mask, or collate without ReftDataCollator "
            "if all tokens are prompt",
        )
    if "decoder_input_ids" in batch and stack == "only":
        raise _encoder_decoder("the batch has decoder_input_ids")
    if labels.shape != (call.batch, call.length):
        if labels.dim() == 2 and stack == "only":
            raise _encoder_decoder(f"labels {list(labels.shape)} beside tokens {[call.batch, call.length]}")
        raise PromptBoundaryError(
            f"labels have shape {list(labels.shape)}",
            code="positions.labels",
            value=list(labels.shape),
            rule=f"labels that tell a prompt from an answer are [batch, seq] = [{call.batch}, {call.length}]",
            fix="collate without ReftDataCollator: for classification every real token is prompt",
        )
    layout = call_layout(call, Situation(role=stack))
    marks = layout.prompt if stack == "decoder" else prompt_runs(layout, labels != -100)
    return marks.to(torch.long)


def real_tokens(batch: Mapping[str, Any]) -> Tensor:
    """The real tokens of a batch, bool `[batch, seq]`, by its attention mask alone."""
    return call_layout(_call({**batch, "labels": None, "position_ids": None}, "only"), Situation()).real


def _call(batch: Mapping[str, Any], stack: StackName) -> CallInputs:
    call = call_inputs(batch, stack)
    if call is None:
        kinds = ", ".join(f"{name} ({type(value).__name__})" for name, value in batch.items())
        raise LocationError(
            f"the collated batch has no token tensor [batch, seq]; it has: {kinds}",
            rule="the wrapped collator returns torch tensors",
            fix="set its return_tensors to 'pt'",
        )
    return call


def _encoder_decoder(what: str) -> PromptBoundaryError:
    return PromptBoundaryError(
        f"{what}: this is a batch for an encoder-decoder",
        code="positions.stack",
        rule="an encoder's prompt is its attended input, whatever the labels are: it needs no prompt_mask",
        fix="collate without ReftDataCollator, or pass stack='decoder' if the adapter edits the decoder only",
    )
