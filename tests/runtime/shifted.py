"""A vector added at tokens that a test chooses, by plain hooks: what a model with `bias` adapters must give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor, nn

from contract.tiny import BY_NAME, base_model, reft_model, token_ids

__all__ = ["LENGTH", "PROMPT", "batch", "biased", "columns", "shifted", "shifts_of"]

LENGTH = 8
PROMPT = 5


def biased(name: str, *, positions: str = "f1+l2", base: hf.PreTrainedModel | None = None) -> PeftModel:
    """A model with one random vector per block, in fp64."""
    base = base_model(name, dtype=torch.float64) if base is None else base
    return reft_model(name, base=base, intervention="bias", positions=positions)


def batch(name: str, *, labels: bool = True, seed: int = 3, rows: int = 2) -> dict[str, Tensor]:
    """Ids, a mask and, unless not asked for, labels that supervise what follows the prompt."""
    ids = token_ids(rows, LENGTH, seed=seed)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if BY_NAME[name].task_type == "SEQ_2_SEQ_LM":
        return {**given, "labels": ids} if labels else {**given, "decoder_input_ids": ids[:, :1]}
    if labels:
        given["labels"] = ids.masked_fill(torch.arange(LENGTH) < PROMPT, -100)
    return given


def columns(name: str, *, labels: bool) -> dict[str, list[int]]:
    """Role → columns that `f1+l2` edits: the prompt's first and its last two, the decoder's start token."""
    if BY_NAME[name].task_type == "SEQ_2_SEQ_LM":
        return {"encoder": [0, LENGTH - 2, LENGTH - 1], "decoder": [0]}
    end = PROMPT if labels and BY_NAME[name].task_type else LENGTH
    return {"only": [0, end - 2, end - 1]}


def shifts_of(model: nn.Module) -> dict[str, Tensor]:
    """Dotted name of a block in the base model → its vector."""
    return {
        key.removeprefix("base_model.model.").partition(".reft.")[0]: value.detach()
        for key, value in model.named_parameters()
        if ".reft." in key
    }


@contextmanager
def shifted(base: nn.Module, name: str, shifts: dict[str, Tensor], edited: dict[str, list[int]]) -> Iterator[None]:
    """Add each block's vector at the chosen columns of its output."""

    def adding(vector: Tensor, chosen: list[int]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            hidden = hidden.clone()
            hidden[:, chosen] += vector
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return hook

    handles = []
    for role, blocks in BY_NAME[name].blocks.items():
        for path, vector in shifts.items():
            if path.startswith(f"{blocks}."):
                handles.append(base.get_submodule(path).register_forward_hook(adding(vector, edited[role])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
