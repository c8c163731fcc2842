"""Repositories in memory: commits, refs, LFS objects, and who may see them.

The handlers run in one event loop and never await between reading a ref and writing it, so a commit is a
compare-and-set without a lock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from .errors import HubError, entry_not_found, revision_not_found
from .objects import Commit, StoredFile, commit_oid

# fmt: off
LFS_SUFFIXES: tuple[str, ...] = (
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt", ".pth",
    ".safetensors", ".tar", ".zip",
)
# fmt: on
LFS_SIZE = 10 * 1024 * 1024

Changes = Mapping[str, "StoredFile | None"]
Gate = Literal["auto", "manual", False]

_SHORT_OID = re.compile(r"[0-9a-f]{7,40}")
_FIRST_DATE = datetime(2024, 1, 1, tzinfo=UTC)
_GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass
class Repository:
    """One model repository. `refs` maps full ref names to commit ids, `lfs` sha256 to bytes."""

    repo_id: str
    private: bool = False
    gated: Gate = False
    admitted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The namespace, here always a user."""
        return self.repo_id.split("/")[0]

    @property
    def pull_requests(self) -> list[str]:
        """The full names of the pull request refs, oldest first."""
        return [ref for ref in self.refs if ref.startswith("refs/pr/")]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref name or a commit id of 7 or more digits names."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if _SHORT_OID.fullmatch(revision):
            for oid, commit in self.commits.items():
                if oid.startswith(revision):
                    return commit
        raise revision_not_found(revision)

    def writable_ref(self, revision: str) -> str:
        """The full name of a branch or pull request that takes commits; tags and commit ids take none."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise revision_not_found(revision)

    def commit(
        self,
        changes: Changes,
        *,
        revision: str = "main",
        title: str = "Update",
        message: str = "",
        author: str | None = None,
        parent: str | None = None,
    ) -> Commit:
        """Moves a branch on by one commit; None deletes a file. A `parent` that is not its head is refused."""
        ref = self.writable_ref(revision)
        head = self.commits[self.refs[ref]]
        if parent is not None and not head.oid.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        made = self._commit_on(head, changes, title, message, author or self.owner)
        self.refs[ref] = made.oid
        return made

    def open_pull_request(self, base: Commit, changes: Changes, *, title: str, message: str, author: str) -> str:
        """Makes one commit on `base` and the next `refs/pr/<n>` that points to it; returns the ref."""
        made = self._commit_on(base, changes, title, message, author)
        ref = f"refs/pr/{len(self.pull_requests) + 1}"
        self.refs[ref] = made.oid
        return ref

    def start(self) -> None:
        """The first commit, which a new repository has from the beginning."""
        root = self._commit_on(
            None, {".gitattributes": StoredFile.regular(_GITATTRIBUTES)}, "initial commit", "", self.owner
        )
        self.refs["refs/heads/main"] = root.oid

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and its ancestors, newest first."""
        line = [commit]
        while (parent := line[-1].parent) is not None:
            line.append(self.commits[parent])
        return line

    def _commit_on(self, parent: Commit | None, changes: Changes, title: str, message: str, author: str) -> Commit:
        files = dict(parent.files) if parent is not None else {}
        for path, file in changes.items():
            if file is not None:
                files[path] = file
            elif files.pop(path, None) is None:
                oid = parent.oid if parent is not None else ""
                raise entry_not_found(f"A file with this name doesn't exist: {path}", oid)
        _check_tree(files)
        date = _FIRST_DATE + timedelta(seconds=len(self.commits))
        parent_oid = parent.oid if parent is not None else None
        oid = commit_oid(self.repo_id, parent_oid, files, title, author, date)
        commit = Commit(oid, parent_oid, files, title, message, author, date)
        self.commits[oid] = commit
        return commit


class Storage:
    """All repositories of one hub."""

    def __init__(self) -> None:
        self.repos: dict[str, Repository] = {}

    def create(self, repo_id: str, *, private: bool = False) -> Repository:
        """A new repository with its first commit; 409 where the name is taken."""
        if repo_id in self.repos:
            raise HubError(409, "You already created this model repo")
        repo = Repository(repo_id, private=private)
        repo.start()
        self.repos[repo_id] = repo
        return repo


def _check_tree(files: Mapping[str, StoredFile]) -> None:
    for path in files:
        parts = path.split("/")
        if any(part in ("", ".", "..", ".git") for part in parts):
            raise HubError(400, f"Invalid path in commit: {path!r}")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise HubError(400, f"{path!r} lies under a path that is a file")
