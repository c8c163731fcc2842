"""Kill a process at any step it takes on the disk.

A child is forked, runs an action, and kills itself with SIGKILL right before its n-th change of a file or folder below
a root: a creation, a rename, a removal, a change of mode, a sync, a native write of tensors. Where bytes are on their
way (a sync, a native write), half of them arrive.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

__all__ = ["count_steps", "killed_at"]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.chmod": 1, "os.truncate": 1, "os.link": 2}
"""Audit events → how many paths they begin with; what follows them are file descriptors of folders."""


def count_steps(action: Callable[[], object], root: Path) -> int:
    """How many steps an action takes below `root`; it is taken by a child, to the end."""
    read, write = os.pipe()
    try:
        status = _fork(action, root, None, write)
        os.close(write)
        reported = os.read(read, 64)
    finally:
        os.close(read)
    assert status == 0, "the child failed; its traceback stands above"
    return int(reported)


def killed_at(step: int, action: Callable[[], object], root: Path) -> None:
    """Run an action in a child that is killed right before its step number `step`, counted from 0."""
    status = _fork(action, root, step, None)
    assert status == -signal.SIGKILL, f"the child was not killed at step {step}: status {status}"


def _fork(action: Callable[[], object], root: Path, step: int | None, report: int | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        steps = _Steps(root, step)
        steps.watch()
        action()
        steps.root = None
        if report is not None:
            os.write(report, str(steps.taken).encode())
        status = 0
    except BaseException:  # a child must not return into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


class _Steps:
    """Counts the steps of this process and ends it at the one asked for."""

    def __init__(self, root: Path, last: int | None) -> None:
        self.root: str | None = f"{os.path.realpath(root)}{os.sep}"
        self.last = last
        self.taken = 0

    def watch(self) -> None:
        sys.addaudithook(self._event)
        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def watched_fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self._step(path, half=path if os.path.isfile(path) else None)
            fsync(descriptor)

        def watched_serialize(tensors: Any, filename: Any, **options: Any) -> None:
            if self.last == self.taken and self._inside(filename):
                serialize(tensors, filename, **options)
            self._step(filename, half=filename)
            serialize(tensors, filename, **options)

        os.fsync = watched_fsync
        safetensors.torch.serialize_file = watched_serialize

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITES:
            self._step(arguments[0])
        elif event in PATHS:
            paths, folders = arguments[: PATHS[event]], arguments[-PATHS[event] :]
            for path, folder in zip(paths, folders, strict=True):
                if type(folder) is int and folder >= 0 and not os.path.isabs(os.fsdecode(path)):
                    path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
                if self._step(path):
                    return

    def _inside(self, path: Any) -> bool:
        return self.root is not None and f"{os.path.abspath(os.fsdecode(path))}{os.sep}".startswith(self.root)

    def _step(self, path: Any, *, half: Any = None) -> bool:
        if not self._inside(path):
            return False
        if self.taken == self.last:
            self.root = None
            if half is not None:
                os.truncate(half, os.path.getsize(half) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1
        return True
