"""Locks on folders: held by a process, gone with it however it ends. Where the system has none, nothing is locked."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import IntegrityError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["folder_lock", "hold", "is_held"]

PATIENCE = 60.0
"""Seconds to wait for another process; what is done under a lock takes milliseconds."""
_PAUSE = 0.02
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes of this library, and other threads, from changing a folder at the same time.

    Args:
        folder: an existing one.

    Raises:
        IntegrityError: another process has had it all this time (`save.busy`).
    """
    until = time.monotonic() + PATIENCE
    while (held := hold(folder)) is None:
        if time.monotonic() > until:
            raise IntegrityError(
                f"another process has been saving into {folder} for {PATIENCE:g} seconds",
                code="save.busy",
                value=str(folder),
                fix="wait for it, or save into another folder",
            )
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        os.close(held)


def hold(folder: Path) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            os.close(descriptor)
            return None
        # a file system without locks, as some that are shared over a network: savers are not kept apart there
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether someone holds the lock of a folder, if it is still there; True where that cannot be told."""
    if fcntl is None:
        return True
    try:
        held = hold(folder)
    except FileNotFoundError:  # its owner has just removed it
        return False
    if held is not None:
        os.close(held)
    return held is None
