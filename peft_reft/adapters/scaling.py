"""A factor on an adapter's edits, set at run time."""

from __future__ import annotations

import sys

from torch import nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.lookup import layers_of

__all__ = ["scale_adapter"]


def scale_adapter(model: nn.Module, name: str, factor: float) -> None:
    """Scale an adapter's edits at run time: h′ = h + factor · delta(h). 0 is off, 1 as trained.

    Args:
        model: a model with ReFT adapters, wrapped by PEFT or not.
        name: of the adapter.
        factor: any finite number.

    Raises:
        ConfigError: no ReFT adapter has that name, or the factor is not a finite number.
    """
    layers = layers_of(model, name)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not abs(factor) <= sys.float_info.max:
        raise ConfigError(
            f"factor={str(factor)[:60]} is not a finite number", value=factor, rule="0 is off, 1 as trained"
        )
    for layer in layers:
        layer.scaling[name] = float(factor)
