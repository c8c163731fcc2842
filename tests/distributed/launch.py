"""Starts gloo processes on the CPU, and ends them if they hang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def environment() -> dict[str, str]:
    """Processes that see no accelerator; DeepSpeed builds nothing and takes the CPU for its device."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def run(command: Sequence[str], *, timeout: int = 300) -> str:
    """Run `python …` to its end and return what it printed; every process that it started ends with it."""
    return run_nodes([command], timeout=timeout)


def run_nodes(commands: Sequence[Sequence[str]], *, timeout: int = 300) -> str:
    """The same for commands that need each other, one for each node."""
    with ExitStack() as stack:
        started = [(stack.enter_context(TemporaryFile("w+")), command) for command in commands]
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment(),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for output, command in started
        ]
        end = time.monotonic() + timeout
        try:
            for process in processes:
                process.wait(max(1, end - time.monotonic()))
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        texts = []
        for output, _ in started:
            output.seek(0)
            texts.append(output.read())
    assert not any(process.returncode for process in processes), "\n".join(text[-6000:] for text in texts)
    return "\n".join(texts)
