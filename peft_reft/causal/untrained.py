"""A network as it is before training: the same classes and shapes, weights drawn anew."""

from __future__ import annotations

import copy

import torch
from torch import nn

from peft_reft.hub_format.errors import CausalModelError

__all__ = ["untrained_like"]


def untrained_like(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a network with weights from its classes' own start.

    A model of transformers starts as its class says; of other networks every module with parameters must have
    `reset_parameters`, as torch's own have.

    Args:
        model: it stays as it is.
        seed: torch's generator is left where it was.

    Returns:
        The copy, on the same devices.

    Raises:
        CausalModelError: a module that does not say how it starts.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            own = list(module.parameters(recurse=False))
            starts = getattr(fresh, "_init_weights", None) or getattr(module, "_init_weights", None)
            if not own:
                continue
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif starts is None:
                raise CausalModelError(
                    f"{name or 'the network'} ({type(module).__name__}) has no reset_parameters",
                    code="causal.untrained",
                    value=name,
                    rule="nulls are networks of the same kind before training",
                    fix="pass untrained=, a function from a seed to such a network",
                )
            if starts is not None:
                starts(module)
    return fresh
