"""What PEFT does to every weight of a model when an adapter comes: freeze the base, widen the adapter, switch to it.

PEFT walks over every module and name of the model for each of them, several times; an adapter's own tensors are all
in our layers, and everything else is the base's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_reft.layer import CHILD
from peft_reft.lookup import units_of
from peft_reft.runtime.state import ModelState

from .hiding import others_hidden

__all__ = ["activate", "cast_adapter", "freeze_base"]

WIDE = (torch.float32, torch.float64)


def freeze_base(state: ModelState) -> bool:
    """Let no parameter of the base be trained.

    Returns:
        False, with nothing done, where something else decides about parameters too: another method's layers, modules
        that are saved in full, trained tokens.
    """
    base = state.base_modules()
    if _has_any(base, BaseTunerLayer, AuxiliaryTrainingWrapper):
        return False
    for module in base:
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.requires_grad = False
    return True


def activate(state: ModelState, adapter_name: str | list[str], inference_mode: bool) -> bool:
    """Make adapters the active ones at every site.

    Returns:
        False, with nothing done, where modules that are saved in full, or trained tokens, have to be switched too.
    """
    if _has_any(state.base_modules(), AuxiliaryTrainingWrapper):
        return False
    for layer in state.layers.values():
        layer.set_adapter(adapter_name, inference_mode=inference_mode)
    return True


def _has_any(modules: Iterable[nn.Module], *classes: type) -> bool:
    """Whether a module is of one of the classes: asked once a class, of which a model has few."""
    return any(issubclass(kind, classes) for kind in set(map(type, modules)))


def cast_adapter(model: nn.Module, state: ModelState, adapter_name: str, autocast_adapter_dtype: bool) -> None:
    """Adapters are float32; without autocasting they take the base's dtype, as PEFT's other methods do."""
    if autocast_adapter_dtype:
        if all(held.dtype in WIDE for unit in units_of(state, adapter_name) for held in unit.parameters()):
            return
        with others_hidden(state, adapter_name):
            for layer in state.layers.values():
                cast_adapter_dtype(layer, adapter_name=adapter_name)
        return
    dtype = next((p.dtype for n, p in model.named_parameters() if f".{CHILD}." not in n), torch.float32)
    for unit in units_of(state, adapter_name) if dtype.is_floating_point else ():
        unit.to(dtype)
