"""The other end of the workers: where each environment's Python is, and a worker that is asked and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.about import ROOT

__all__ = ["Worker", "WorkerError", "python_of", "variables"]


class WorkerError(Exception):
    """A worker that ended, or that cannot do what it was asked."""


def python_of(environment: str, folder: Path = ROOT) -> Path | None:
    """The interpreter of an environment, `.venv-<name>` in `folder`; None where it was not made."""
    if environment == "own":
        return Path(sys.executable)
    python = folder / f".venv-{environment}" / "bin" / "python"
    return python if python.exists() else None


def variables(device: str) -> dict[str, str]:
    """One thread on a CPU, from the start of the process on; nothing from the network."""
    told = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if device == "cpu":
        told |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **told}


class Worker:
    """A process of a module that answers, ended when its `with` is left. Its errors are written to `log`.

    Args:
        python: of its environment.
        device: `"cpu"`, or an accelerator's.
        log: file for what it prints.
        words: its module and arguments; without, `benchmarks.speed.worker`.
        environment: variables of its own.
    """

    def __init__(
        self,
        python: Path,
        device: str,
        log: Path,
        *,
        words: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        words = words or ("benchmarks.speed.worker", "--device", device)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", *words],
                cwd=ROOT,
                env={**variables(device), **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **message: Any) -> dict[str, Any]:
        """The answer to one message; `WorkerError` for an error and for a process that has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended with status {self._process.wait()}; its errors are in {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer
