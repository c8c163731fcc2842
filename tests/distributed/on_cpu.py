"""Runs the example several times in one start of the processes, on the CPU.

    … -m distributed.on_cpu ENGINE FOLDER MODEL DATA

accelerate takes FSDP for a matter of accelerators alone (`AcceleratorState`): it is told that these two processes are
on one, and computes on the CPU all the same. DeepSpeed would compile a kernel for shared memory: gloo does without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from examples.distributed.train import main as train

OPTIONS = {
    "use_cpu": "true",
    "bf16": "false",
    "max_steps": "4",
    "save_steps": "2",
    "learning_rate": "0.05",
    "optim": "sgd",
    "max_grad_norm": "0",
    "logging_steps": "1",
    "report_to": "none",
    "disable_tqdm": "true",
    "gradient_checkpointing": "false",
    "rank": "3",
    "positions": "f2+l2",
}
KINDS = {"reft": {}, "mixed": {"lora_rank": "2"}}
RESUMED = "resumed"


def arguments(**options: str) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def main(engine: str, folder: Path, model: str, data: str, size: str) -> None:
    torch.set_num_threads(1)
    if engine == "fsdp2":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if engine.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for kind, more in KINDS.items():
        given = {**OPTIONS, **more, "model": model, "data": data, "per_device_train_batch_size": size}
        whole = folder / f"{engine}-{kind}"
        train(arguments(**given, output_dir=str(whole)))
        checkpoint = str(whole / "checkpoint-2")
        train(
            arguments(
                **given, output_dir=str(folder / f"{engine}-{kind}-{RESUMED}"), resume_from_checkpoint=checkpoint
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
