"""The pages' lines for several processes and nodes are executed, with two processes on the CPU in place of 8 devices.

The lines are those of the pages but for the number of devices and the port. `train.py` is the example's, told that
there is no accelerator; the two nodes are two shells of this machine, and Slurm's two programs are stand-ins.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed.launch import TESTS, free_port
from distributed.on_cpu import OPTIONS, arguments

from peft_reft.hub_format.reader import check_folder
from tools.site.blocks import blocks, command

from .places import EXAMPLES, NAME, ROOT, base, execute, programs, rows

pytestmark = pytest.mark.slow

README, RECIPE = "examples/distributed/README.md", "docs/recipes/several_gpus.md"
TRAIN = """import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
from examples.distributed.train import main
if {fsdp}:  # accelerate takes FSDP for a matter of accelerators alone
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
main([*sys.argv[1:], *{options}])
"""
SLURM = {
    "scontrol": "echo 127.0.0.1; echo 127.0.0.2",
    "srun": 'for n in 0 1; do SLURM_NODEID=$n "$@" & ids+=($!); done; for id in ${ids[@]}; do wait $id || exit; done',
}


def prepared(folder: Path, *, fsdp: bool) -> None:
    """The example's folder, for this machine."""
    folder.mkdir()
    base(folder / NAME)
    rows(folder / "rows.jsonl")
    (folder / "train.py").write_text(TRAIN.format(fsdp=fsdp, options=arguments(**OPTIONS)), "utf-8")
    config = (EXAMPLES / "fsdp2.yaml").read_text("utf-8")
    for there, here in (("num_processes: 16", "num_processes: 2"), ("mixed_precision: bf16", 'mixed_precision: "no"')):
        assert there in config
        config = config.replace(there, here)
    (folder / "fsdp2.yaml").write_text(config, "utf-8")


def fitted(line: str, *, processes: int) -> str:
    """A page's line with another number of devices, and a port that is free."""
    line = re.sub(r"(--nproc_per_node|--num_processes) 8\b", rf"\1 {processes}", line)
    return line.replace("29500", str(free_port()))


def launched(line: str, tmp_path: Path, nodes: list[dict[str, str]], *, processes: int) -> None:
    """Execute a line once for every node, at the same time; an adapter comes out."""
    work = tmp_path / "work"
    prepared(work, fsdp="fsdp2" in line)
    path, line = programs(tmp_path / "bin", SLURM), fitted(line, processes=processes)
    where = {"PYTHONPATH": f"{TESTS}:{ROOT}", "DS_ACCELERATOR": "cpu"}
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: execute(line, work, path, timeout=300, **where, **node), nodes))
    check_folder(work / "out")


ONE, TWO = [{}], [{"HEAD": "127.0.0.1", "JOB": "page", "NODE": str(node)} for node in (0, 1)]


@pytest.mark.parametrize("program", ["torchrun", "accelerate launch"])
def test_one_machine(program: str, tmp_path: Path) -> None:
    launched(command(RECIPE, program), tmp_path, ONE, processes=2)


@pytest.mark.parametrize("program", ["torchrun", "accelerate launch"])
def test_two_nodes(program: str, tmp_path: Path) -> None:
    launched(command(README, program), tmp_path, TWO, processes=1)


@pytest.mark.parametrize("program", ["torchrun", "accelerate"])
def test_a_batch_system(program: str, tmp_path: Path) -> None:
    """The block but for the other one of its two `srun` lines."""
    (block,) = [block for block in blocks(README, "bash") if "#SBATCH" in block]
    block = block.replace("\\\n", " ")
    lines = [line for line in block.splitlines() if "srun" not in line or program in line]
    assert len(lines) == 3
    nodes = [{"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "page", "SLURM_NNODES": "2"}]
    launched("\n".join(lines), tmp_path, nodes, processes=1)
