"""The base of an adapter that is converted: its modules by its config alone, its task and its head."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.importers import Imported

__all__ = ["HEADS", "empty_base", "task_and_head"]

_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)
HEADS = ("classifier", "score", "qa_outputs")
"""What PEFT's task models save in full (peft/peft_model.py, `classifier_module_names`, `qa_module_names`)."""


def empty_base(base_model: str) -> nn.Module:
    """The base's modules without their weights, from its config alone."""
    config = transformers.AutoConfig.from_pretrained(base_model)
    names = getattr(config, "architectures", None) or []
    cls = getattr(transformers, names[0], None) if names else None
    if cls is None:
        raise ConfigError(
            f"the config of {base_model} names no class of transformers: architectures={names}",
            value=names,
            fix="add its class to 'architectures' in config.json",
        )
    with torch.device("meta"):
        model: nn.Module = cls(config)
    return model


def task_and_head(model: nn.Module, adapter: Imported, base_model: str) -> tuple[str | None, dict[str, Tensor]]:
    """The task type by the class's name, and the head that PEFT saves with every adapter of a task that has one.

    The head is the source's, else that of a local base; without either the task type stays open, since PEFT refuses an
    adapter of such a task without its head.
    """
    name = type(model).__name__
    task = next((task for ending, task in _TASKS if name.endswith(ending)), None)
    wanted = [key for key in model.state_dict() if set(key.split(".")) & set(HEADS)]
    if task in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM") or not wanted:
        return task, {}
    head = dict(adapter.head or {})
    for file in sorted(Path(base_model).glob("*.safetensors")) if not head else ():
        with safe_open(file, "pt") as opened:
            head |= {key: opened.get_tensor(key) for key in opened.keys() if key in wanted}  # noqa: SIM118
    if set(head) != set(wanted):
        warnings.warn(
            f"{name} needs its head, {wanted}, and it was not found: the task type is left open", stacklevel=4
        )
        return None, {}
    return task, head
