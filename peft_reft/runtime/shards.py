"""Where parameters are not at hand: shards, offloaded ones, and what brings them back around a module."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

__all__ = ["is_distributed", "is_gathered_alone", "is_placeholder"]


def is_distributed() -> bool:
    """Whether processes of torch's run together."""
    return dist.is_available() and dist.is_initialized()


def is_placeholder(parameter: nn.Parameter) -> bool:
    """Whether an engine holds a parameter's values elsewhere until its module runs."""
    return type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id") or parameter.is_meta


def is_gathered_alone(model: nn.Module, path: str, parameter: nn.Parameter) -> bool:
    """Whether an engine, or accelerate's offloading, brings a site's parameters around the site's block only.

    The type alone does not say it: FSDP2 leaves a plain parameter where it does not free it after a forward.
    """
    if is_placeholder(parameter):
        return True
    if not is_distributed():
        return False
    from torch.distributed.fsdp import FSDPModule

    module = model
    for part in path.split("."):
        if isinstance(module, FSDPModule):
            return True
        module = module.get_submodule(part)
    return isinstance(module, FSDPModule)
