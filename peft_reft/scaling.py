"""A factor on an adapter's edits, set at run time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peft_reft.hub_format.errors import ConfigError

from .layer import ReftLayer

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
    layers: Sequence[ReftLayer] = [module for module in model.modules() if isinstance(module, ReftLayer)]
    chosen = [layer for layer in layers if name in layer.units]
    if not chosen:
        known = sorted({adapter for layer in layers for adapter in layer.units})
        raise ConfigError(
            f"there is no ReFT adapter {name!r}", value=name, rule=f"known are: {', '.join(known) or 'none'}"
        )
    if (
        isinstance(factor, bool)
        or not isinstance(factor, (int, float))
        or factor != factor
        or abs(factor) == float("inf")
    ):
        raise ConfigError(f"factor={factor!r} is not a finite number", value=factor)
    for layer in chosen:
        layer.scaling[name] = float(factor)
