"""One training loop under each engine: losses, gradients of the first step, the folder saved after the last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distributed.models import STEPS, as_plain, batch, load, make, optimizer_of, trained

Result = dict[str, Any]
BASE, START = "base", "start"
"""Folders that the starting process writes: the base model, and of each kind the adapters before training."""


def own_rows() -> slice:
    """The half of a batch that this process computes."""
    return slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)


def steps(model: nn.Module, forward: Callable[..., Any], parts: list[slice], *, evaluate: bool = False) -> Result:
    """Train; the gradients of the parts of a batch are accumulated. `evaluate`: a forward without them before."""
    optimizer, losses, gradients = optimizer_of(model), [], {}
    for step in range(STEPS):
        if evaluate:
            with torch.no_grad():
                forward(**batch(step, parts[0]))
        found = []
        for part in parts:
            loss = forward(**batch(step, part)).loss / len(parts)
            loss.backward()
            found.append(loss.detach())
        losses.append(sum(found[1:], found[0]))
        if step == 0:
            gradients = as_plain({name: p.grad for name, p in trained(model).items()})
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients}


def saved(result: Result, model: nn.Module, folder: Path, state: Any = None) -> Result:
    """Save as a trainer does: every process calls, the first one writes."""
    model.save_pretrained(str(folder), is_main_process=dist.get_rank() == 0, state_dict=state)
    return result


def mean(losses: list[Tensor]) -> list[Tensor]:
    """Over the processes."""
    found = torch.stack(losses)
    dist.all_reduce(found)
    return list(found / dist.get_world_size())


def single(kind: str, folder: Path, *, parts: int) -> Result:
    """The reference: one process computes the whole batch, at once or in parts."""
    model = make(kind)
    size = 4 // parts
    result = steps(model, model, [slice(size * part, size * part + size) for part in range(parts)])
    model.save_pretrained(str(folder))
    return result


def ddp(kind: str, folder: Path) -> Result:
    model = make(kind)
    result = steps(model, DistributedDataParallel(model), [own_rows()])
    return saved({**result, "losses": mean(result["losses"])}, model, folder)


def fsdp2(kind: str, folder: Path, *, keep: bool = False) -> Result:
    """`keep`: parameters stay gathered after a forward, and a forward without gradients precedes each step."""
    model = make(kind)
    for block in model.get_base_model().model.layers:
        fully_shard(block, reshard_after_forward=not keep)
    fully_shard(model)
    result = steps(model, model, [own_rows()], evaluate=keep)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return saved({**result, "losses": mean(result["losses"])}, model, folder, state)


def tensor_parallel(kind: str, folder: Path) -> Result:
    model = load(kind, folder.parents[1] / f"{START}-{kind}", base=sharded_base(folder.parents[1]))
    return saved(steps(model, model, [slice(None)]), model, folder)


def sharded_base(root: Path) -> nn.Module:
    """The base under `tp_plan="auto"`: its attention heads and feed-forward columns spread over the processes."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(root / BASE), tp_plan="auto", dtype=torch.float64)
    assert hasattr(model.model.layers[0].self_attn.q_proj.weight, "device_mesh")
    return model


def zero_engine(model: nn.Module, stage: int) -> Any:
    """DeepSpeed around a model, with nothing compiled and no tensor too small to be sharded."""
    import deepspeed

    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: nothing is compiled
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,  # its own default is 1
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=config)[0]


def zero(kind: str, folder: Path, *, stage: int) -> Result:
    from deepspeed.utils import safe_get_full_grad

    model = make(kind)
    engine = zero_engine(model, stage)
    losses, gradients = [], {}
    for step in range(STEPS):
        loss = engine(**batch(step, own_rows())).loss
        engine.backward(loss)
        losses.append(loss.detach())
        if step == 0:
            gradients = as_plain({name: safe_get_full_grad(p) for name, p in trained(model).items()})
        engine.step()
    state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True) if stage == 3 else None
    return saved({"losses": mean(losses), "gradients": gradients}, model, folder, state if stage == 3 else None)


ENGINES: dict[str, Callable[[str, Path], Result]] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "fsdp2_kept": lambda kind, folder: fsdp2(kind, folder, keep=True),
    "tp": tensor_parallel,
    "zero2": lambda kind, folder: zero(kind, folder, stage=2),
    "zero3": lambda kind, folder: zero(kind, folder, stage=3),
}
