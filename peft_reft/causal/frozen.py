"""The network of a search, without gradients of its own, and inputs where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.runtime.evaluating import evaluating

__all__ = ["frozen", "moved"]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and parameters that what is computed within gives no gradients; afterwards they are as they were."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


def moved(inputs: Any, device: torch.device) -> Any:
    """Inputs with their tensors on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(moved(value, device) for value in inputs)
    return inputs
