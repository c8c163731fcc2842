"""The network of a search: in eval mode, without gradients of its own, on a device of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["device_of", "evaluating", "frozen", "moved"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode of every module within; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs go: the device of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def moved(inputs: Any, device: torch.device) -> Any:
    """Inputs with their tensors on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(moved(value, device) for value in inputs)
    return inputs
