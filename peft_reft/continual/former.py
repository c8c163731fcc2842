"""A model as it was: adapters off, or their parameters as they were, for one forward; no second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError

__all__ = ["as_before", "evaluating", "snapshot"]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained, by name; as small as the adapter is.

    Raises:
        ConfigError: nothing is trained.
    """
    held = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    if not held:
        raise ConfigError(
            "nothing of the model is trained",
            rule="what is kept to is the state before training of what trains",
            fix="make the adapter trainable first: set_adapter, or is_trainable=True when it is loaded",
        )
    return held


@contextmanager
def as_before(model: PeftModel, state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Let a model compute as it did, without gradients: with the parameters of a snapshot, or, of None, as its base.

    Parameters keep their identity; a forward whose backward is still to come may have run before, since all is as it
    was when this ends.

    Raises:
        ConfigError: a parameter of the snapshot is gone, or is not whole here.
    """
    if state is None:
        with torch.no_grad(), model.disable_adapter():
            yield
        return
    parameters = dict(model.named_parameters())
    for name, former in state.items():
        if name not in parameters or parameters[name].shape != former.shape or hasattr(parameters[name], "placements"):
            raise ConfigError(
                f"the parameter {name!r} is not what it was when the anchor was added",
                value=name,
                rule="a former state is put in place of whole parameters, which sharding takes apart",
                fix="use to='base' where parameters are sharded, and add the anchor after the last adapter",
            )
    now = {name: parameters[name].data for name in state}
    try:
        for name, former in state.items():
            parameters[name].data = former.to(now[name].device)
        with torch.no_grad():
            yield
    finally:
        for name, current in now.items():
            parameters[name].data = current


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
