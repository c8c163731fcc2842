"""Identity of a base model, as a manifest records it: enough to tell that an adapter is not meant for another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .sites import Stack

__all__ = ["base_identity"]


def base_identity(model: nn.Module, stacks: Sequence[Stack], hidden_size: int) -> dict[str, Any]:
    """Class, model type, hidden size, blocks per stack, and the name the model was loaded under."""
    config = getattr(model, "config", None)
    return {
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "hidden_size": hidden_size,
        "stacks": {stack.path: stack.length for stack in stacks},
        "vocab_size": getattr(config, "vocab_size", None),
    }
