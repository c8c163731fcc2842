"""What a model is called with: a tensor, several, or keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError

from .site import Column, Site

__all__ = ["Inputs", "call_model", "named"]

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One tensor, a tuple of arguments, or keywords (as a tokenizer gives them)."""


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        ConfigError: names its type.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"model is a {kind}", value=kind, rule="it is a torch.nn.Module", fix="pass the model first")


def named(inputs: Any) -> Mapping[str, Any]:
    """The keywords of the inputs; none for a tensor or a tuple."""
    return inputs if isinstance(inputs, Mapping) else {}


def call_model(model: nn.Module, inputs: Any, sites: Iterable[Site]) -> Any:
    """The model's output; keys that only say positions of the sites (`Column`) are taken off."""
    if isinstance(inputs, Mapping):
        columns = {site.position.key for site in sites if isinstance(site.position, Column)}
        return model(**{name: value for name, value in inputs.items() if name not in columns})
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Tensor):
        return model(inputs)
    raise ConfigError(
        f"inputs of type {type(inputs).__name__}",
        value=type(inputs).__name__,
        rule="a tensor, a tuple of arguments, or a mapping of keywords",
    )
