"""Folders and repositories, as bytes; and other processes that use the same hub."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from tools.loopback_hub import LoopbackHub


def upload(hub: LoopbackHub, folder: Path, repo_id: str = "me/x") -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return api


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(hub: LoopbackHub, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    """Path → bytes of a repository's files, without what the hub puts there."""
    repo = hub.storage.repos[repo_id]
    return {
        path: file.content if file.content is not None else repo.lfs[str(file.sha256)]
        for path, file in repo.resolve(revision).files.items()
        if path != ".gitattributes"
    }


def started(action: Callable[[], object]) -> int:
    """A process of its own that does something and ends; give its number to `ended`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:  # a child must not return into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """The status of a process after its end: 0 where nothing was raised."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
