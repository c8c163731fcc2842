"""The Hub: one commit per push, made on top of the revision that was looked at; one revision per load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from .card import CardFacts, updated_card
from .manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME

__all__ = ["fetch_folder", "push_folder"]

CARD_NAME = "README.md"
ATTEMPTS = 5


def push_folder(
    folder: Path,
    facts: CardFacts,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Push a folder's files and an updated card as one commit; returns the commit's URL.

    The commit names its parent. Where someone else pushed in between, the card is brought up to date again on top of
    their commit, a bounded number of times.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(facts.repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        parent = api.model_info(repo_id, revision=revision).sha
        card = updated_card(_card_at(repo_id, parent, token), facts)
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != CARD_NAME
        ]
        operations.append(CommitOperationAdd(CARD_NAME, card.encode("utf-8")))
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or "Upload ReFT adapter",
                revision=revision,
                create_pr=create_pr,
                parent_commit=None if create_pr else parent,
            )
        except HfHubHTTPError as error:
            stale = error.response is not None and error.response.status_code == 412
            if not stale or attempt == ATTEMPTS:
                raise
            continue
        return str(commit.commit_url)
    raise RuntimeError("no attempt was made")


def fetch_folder(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, **options: Any
) -> Path:
    """Bring a repository's adapter files into the cache, all from one commit; returns the folder."""
    names = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, "reft_index.json")
    patterns = [*names, *(f"*/{name}" for name in names)]
    return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns, **options))


def _card_at(repo_id: str, commit: str | None, token: str | bool | None) -> str | None:
    try:
        path = hf_hub_download(repo_id, CARD_NAME, revision=commit, token=token)
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")
