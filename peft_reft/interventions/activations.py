"""What the activations compute: functions of one number, each equal to transformers' `ACT2FN` of any of its names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activation", "starts_at_zero"]

_NOT_AT_ZERO = ("laplace", "relu", "relu2", "relu6", "sigmoid", "sqrtsoftplus")
"""laplace, sigmoid and sqrtsoftplus of 0 are not 0; relu, relu2 and relu6 have no slope there (torch takes the flat
side's), so that from W = 0, b = 0 nothing would get a gradient, ever."""
_LOW = -30.0
"""Below it √ln(1 + eᶻ) is e^(z/2) to the last bit of a float64, and its derivative by the quotient would be 0/0."""


def activation(name: str | None, source: Tensor) -> Tensor:
    """Apply the activation of a canonical name to the learned source `[..., rank]`; None is the identity."""
    return source if name is None else _FUNCTIONS[name](source)


def starts_at_zero(name: str) -> bool:
    """Whether a learned source of 0 gives 0, and may learn from there."""
    return name not in _NOT_AT_ZERO


def _laplace(source: Tensor) -> Tensor:
    """The one of MEGA (arXiv 2209.10655, section 3.4), with its constants as transformers rounds them."""
    return 0.5 * (1 + torch.erf((source - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _sqrtsoftplus(source: Tensor) -> Tensor:
    root = F.softplus(source.clamp(min=_LOW)).sqrt()
    return torch.where(source < _LOW, torch.exp(source.clamp(max=_LOW) / 2), root)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_10": lambda source: F.gelu(source).clamp(-10.0, 10.0),
    "gelu_tanh": lambda source: F.gelu(source, approximate="tanh"),
    "hardswish": F.hardswish,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "quick_gelu": lambda source: source * torch.sigmoid(1.702 * source),
    "relu": F.relu,
    "relu2": lambda source: F.relu(source).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": _sqrtsoftplus,
    "tanh": torch.tanh,
}
