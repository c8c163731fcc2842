"""The tensor of a module's call that is edited: taken out of what the module gives, and put back into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import SiteError

from .components import Tap

__all__ = ["hidden_of", "with_hidden", "with_slice"]


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a module's output: the tensor itself, or the first element.

    Raises:
        SiteError: the output is no tensor and holds none there.
    """
    if isinstance(output, Tensor):
        return output
    found = next(iter(output.values()), None) if isinstance(output, Mapping) else output
    if isinstance(found, (tuple, list)):
        found = found[0] if found else None
    if not isinstance(found, Tensor):
        raise SiteError(
            f"a module gave {type(output).__name__}",
            code="site.output",
            value=type(output).__name__,
            rule="a tensor, or a tuple, list or mapping whose first element is one, can be read and edited",
        )
    return found


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A module's output, of the type it had, with its first element replaced."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, Mapping):  # transformers' ModelOutput
        return type(output)(**{**output, next(iter(output)): hidden})
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: hidden})
    return type(output)([hidden, *output[1:]])


def with_slice(hidden: Tensor, tap: Tap, part: Tensor) -> Tensor:
    """`hidden` with the tap's slice of its last dimension replaced."""
    return torch.cat([hidden[..., : tap.start], part, hidden[..., tap.stop :]], dim=-1)
