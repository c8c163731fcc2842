"""Run as a module by `torchrun`: the engines and checks that are named, all in one start of the processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from distributed.checks import CHECKS, ZERO_CHECKS
from distributed.engines import ENGINES
from distributed.models import KINDS


def main(root: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    checks = {**CHECKS, **ZERO_CHECKS}
    for name in names:
        if name in checks:
            torch.save(checks[name](root), root / f"{name}-{rank}.pt")
            continue
        for kind in KINDS:
            folder = root / f"{name}-{kind}" / str(rank)
            folder.parent.mkdir(exist_ok=True)
            torch.save(ENGINES[name](kind, folder), root / f"{name}-{kind}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
