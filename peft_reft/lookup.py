"""What a model has: its sites, those of an adapter, and an adapter's interventions."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peft_reft.hub_format.errors import ConfigError

from .interventions import Intervention
from .layer import ReftLayer
from .runtime.state import ModelState

__all__ = ["layers_of", "reft_layers", "units_of", "unknown_adapter"]


def reft_layers(model: nn.Module) -> list[ReftLayer]:
    """The sites of a model, in the order of its modules.

    Raises:
        ConfigError: what was passed is no module.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(
            f"model is a {kind}",
            value=kind,
            rule="it is a model with ReFT adapters, a torch.nn.Module",
            fix="pass what get_peft_model or PeftModel.from_pretrained returned",
        )
    return [module for module in model.modules() if isinstance(module, ReftLayer)]


def layers_of(model: nn.Module, adapter: str, *, code: str | None = None) -> list[ReftLayer]:
    """The sites of one adapter, one or more.

    Args:
        model: a model with ReFT adapters, wrapped by PEFT or not.
        adapter: its name.
        code: of the error, if not that of its class.

    Raises:
        ConfigError: no ReFT adapter has that name, or what was passed is no module.
    """
    layers = [layer for layer in reft_layers(model) if isinstance(adapter, str) and adapter in layer.units]
    if not layers:
        raise unknown_adapter(model, adapter, code=code)
    return layers


def unknown_adapter(model: nn.Module, adapter: object, *, code: str | None = None) -> ConfigError:
    """The refusal of a name that no ReFT adapter of a model has."""
    known = sorted({name for layer in reft_layers(model) for name in layer.units})
    return ConfigError(
        f"there is no ReFT adapter {adapter!r}",
        code=code,
        value=adapter,
        rule=f"known are: {', '.join(known) or 'none'}",
    )


def units_of(state: ModelState, adapter_name: str) -> Iterator[Intervention]:
    """An adapter's interventions, at all sites."""
    for layer in state.layers.values():
        for number in layer.units.get(adapter_name, ()):
            yield layer.unit((adapter_name, number))
