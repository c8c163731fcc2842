"""What engines of distributed training do to a model's parameters, and what follows for adapters.

FSDP2 and DeepSpeed ZeRO-3 gather a module's parameters around its own forward, and take their gradients when the
backward pass leaves it: what is computed from them must be computed there. Both take over the parameters that they
find when they wrap a model: one that comes later is in no process group. Tensor parallelism shards the base's
matrices at load; adapters come after it, and every process holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError, SiteError

__all__ = ["check_not_sharded", "check_whole_input", "share_start"]

FSDP_FIX = "get_peft_model first, then fully_shard, accelerate's prepare or a trainer"
ZERO3 = "ZeROOrderedDict"
"""Type that DeepSpeed gives to the parameters of every module when it wraps a model under stage 3."""


def check_not_sharded(model: nn.Module) -> None:
    """Refuse to add adapters to a model that an engine has taken over: nobody would sync their gradients.

    Raises:
        ConfigError: the model is wrapped by FSDP, or is under DeepSpeed ZeRO-3.
    """
    if not _distributed():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    for path, module in model.named_modules():
        if isinstance(module, (FSDPModule, FullyShardedDataParallel)):
            raise _too_late("FSDP", path, FSDP_FIX)
        if type(module._parameters).__name__ == ZERO3:
            raise _too_late("DeepSpeed ZeRO-3", path, "get_peft_model first, then deepspeed.initialize or a trainer")
    if all(_is_split(parameter) for parameter in model.parameters()):  # by a wrapper around this model
        raise _too_late("FSDP", "", FSDP_FIX)


def check_whole_input(model: nn.Module, path: str) -> None:
    """Refuse to edit the input of a module whose matrix is sharded: each process sees a part of that input.

    Raises:
        SiteError: the module's own parameters are sharded.
    """
    if not any(map(_mesh, model.get_submodule(path).parameters(recurse=False))):
        return
    raise SiteError(
        f"the input of {path} is spread over the processes of tensor parallelism",
        code="site.sharded",
        value=path,
        rule="an edit reads a whole hidden state",
        fix="edit component='attention_output', 'mlp_output' or 'block_output', or train without tensor parallelism",
    )


def share_start(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Under tensor parallelism give every process the first one's start of new parameters.

    The seeds of processes may differ, and every process computes with its own copy. All processes of the group call.

    Raises:
        ConfigError: it cannot be told which processes hold the parts of one model.
    """
    if not _distributed():
        return
    mesh = next((mesh for mesh in map(_mesh, model.parameters()) if mesh is not None), None)
    if mesh is None:
        return
    if mesh.ndim > 1:
        raise ConfigError(
            f"the model is sharded over a mesh of dimensions {mesh.mesh_dim_names}",
            value=mesh.mesh_dim_names,
            code="model.sharded",
            rule="an adapter is added to a model under tensor parallelism alone",
            fix="load it with tp_plan='auto' and no other parallelism",
        )
    group = mesh.get_group()
    for parameter in parameters:
        if not parameter.is_meta:
            dist.broadcast(parameter.data, src=dist.get_global_rank(group, 0), group=group)


def _mesh(parameter: Tensor) -> Any:
    """The processes over which a DTensor is spread; None for a plain tensor."""
    return getattr(parameter, "device_mesh", None)


def _is_split(parameter: Any) -> bool:
    """Tensor parallelism leaves norms whole, FSDP splits everything."""
    return _mesh(parameter) is not None and any(placement.is_shard() for placement in parameter.placements)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _too_late(engine: str, path: str, fix: str) -> ConfigError:
    return ConfigError(
        f"the model is wrapped by {engine} already (at {path or 'its root'!r})",
        code="model.sharded",
        value=path,
        rule="an engine shards and syncs what it finds when it wraps a model; adapters are added before",
        fix=fix,
    )
