"""Folders and repositories, as bytes."""

from __future__ import annotations

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
