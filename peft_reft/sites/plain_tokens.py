"""A few tokens that mean nothing special to a model, to run a forward on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .fields import config_field
from .stacks import text_config

__all__ = ["device_of_inputs", "plain_tokens"]

_MOST = 4096
"""Ids beyond this are not looked at."""


def plain_tokens(model: nn.Module, batch: int, length: int, *, device: torch.device | None = None) -> Tensor:
    """Ids `[batch, length]`, every row the same: no padding, no image, nothing that the config names.

    Args:
        model: whose tokens they are.
        batch, length: of the result.
        device: of the result; without it where the model's inputs go.
    """
    config = text_config(model)
    special = _special({}, getattr(model, "config", None), config)
    size = config_field(config, "vocab_size")
    size = size if isinstance(size, int) else 64
    plain = [token for token in range(min(size, _MOST)) if token not in special][-length:] or [0]
    row = [plain[place % len(plain)] for place in range(length)]
    return torch.tensor([row], device=device or device_of_inputs(model)).repeat(batch, 1)


def _special(found: dict[int, None], *configs: Any) -> dict[int, None]:
    """Ids that a config names, its sub-configs' included: padding, images and the like."""
    for config in configs:
        for name, value in (config.to_dict() if hasattr(config, "to_dict") else {}).items():
            named = value.items() if isinstance(value, dict) else [(name, value)]
            for key, ids in named:
                if str(key).endswith(("_id", "_ids", "_index")):
                    found.update(
                        dict.fromkeys(one for one in (ids if isinstance(ids, list) else [ids]) if _is_id(one))
                    )
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def device_of_inputs(model: nn.Module) -> torch.device:
    """Where the inputs go: to the embedding, else to the first parameter."""
    get: Any = getattr(model, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    owner = embedding if isinstance(embedding, nn.Module) else model
    found = next((tensor.device for tensor in (*owner.parameters(), *model.parameters())), None)
    return torch.device("cpu") if found is None else found
