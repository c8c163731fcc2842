"""Identity of a base model, as a manifest records it: enough to tell that an adapter is not meant for another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from .sites import Stack

__all__ = ["base_identity", "tokenizer_fingerprint"]


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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """`sha256:` of a tokenizer's vocabulary, added tokens included: the JSON of [token, id] pairs, sorted by id."""
    pairs = sorted(([str(token), int(number)] for token, number in tokenizer.get_vocab().items()), key=_by_id)
    return "sha256:" + hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def _by_id(pair: list[Any]) -> tuple[int, str]:
    return pair[1], pair[0]
