"""Run by a launcher: `DPOTrainer` with each objective, and `SFTTrainer` with a kind that adds to the loss.

    … tests/distributed/objectives.py ENGINE FOLDER SIZE

SIZE pairs a process: all four in each step. SGD, whose step is the gradient times the rate. By its path, not as a
module: then `integrations` is that of the tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from integrations.preferences import OBJECTIVES, dpo_trainer, history, vector_policy
from integrations.tiny_sft import base_model, reft, trainer_for
from peft import get_peft_model

from peft_reft.integrations import use_objective

__all__ = ["LINEAR", "PENALISED", "TRAINED", "losses_of"]

LINEAR: dict[str, Any] = {
    "max_steps": 2,
    "learning_rate": 0.05,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}
PENALISED = {
    "a penalty": {},
    "a penalty, recomputed": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
}
TRAINED = (*OBJECTIVES, *PENALISED)


def by_objective(folder: Path, name: str, size: int) -> Any:
    trainer = dpo_trainer(folder, vector_policy(), **LINEAR, per_device_train_batch_size=size)
    use_objective(trainer, OBJECTIVES[name])
    return trainer


def with_penalty(folder: Path, name: str, size: int) -> Any:
    """Scales of heads, of which the L1 norm is added: LoFiT's first stage."""
    options = {"heads": 4, "sparsity": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = reft(intervention="heads", component="heads", options=options, positions="all", init_weights=False)
        model = get_peft_model(base_model(), config)
    return trainer_for(folder, model=model, **LINEAR, per_device_train_batch_size=size, **PENALISED[name])


def losses_of(folder: Path) -> list[float]:
    """What was logged, a number for each step."""
    found: list[float] = json.loads((folder / "losses.json").read_text("utf-8"))
    return found


def main(engine: str, folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    if engine == "fsdp2":  # accelerate takes FSDP for a matter of accelerators alone, see `on_cpu`
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    for name in TRAINED:
        make: Callable[[Path, str, int], Any] = by_objective if name in OBJECTIVES else with_penalty
        if engine == "fsdp2" and name in PENALISED:
            continue  # refused: tests/runtime
        target = folder / engine / name
        trainer = make(target, name, size)
        trainer.train()
        trainer.save_model(str(target))
        if trainer.is_world_process_zero():
            (target / "losses.json").write_text(json.dumps(history(trainer, "loss")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
