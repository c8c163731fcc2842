"""What a repository is made of: files, commits and their git identities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


def git_blob_id(data: bytes) -> str:
    """The sha1 git gives a blob; the client compares it to skip unchanged files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a commit: its bytes, or for an LFS file the sha256 under which the bytes lie."""

    size: int
    blob_id: str
    content: bytes | None = None
    sha256: str | None = None
    pointer_size: int = 0

    @classmethod
    def regular(cls, content: bytes) -> StoredFile:
        """A file kept in git itself."""
        return cls(size=len(content), blob_id=git_blob_id(content), content=content)

    @classmethod
    def lfs(cls, sha256: str, size: int) -> StoredFile:
        """A file of which git keeps a pointer only."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(size=size, blob_id=git_blob_id(pointer), sha256=sha256, pointer_size=len(pointer))

    @property
    def etag(self) -> str:
        """What the client's cache names the blob: the sha256 of an LFS file, else the git blob id."""
        return self.sha256 if self.sha256 is not None else self.blob_id


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of all files, and who made it."""

    oid: str
    parent: str | None
    files: Mapping[str, StoredFile]
    title: str
    message: str
    author: str
    date: datetime

    @property
    def timestamp(self) -> str:
        """The date in the one notation the client parses."""
        return self.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def commit_oid(
    repo_id: str, parent: str | None, files: Mapping[str, StoredFile], title: str, author: str, date: datetime
) -> str:
    """40 hex digits over all that makes a commit: the same pushes give the same ids in every run."""
    digest = hashlib.sha1(usedforsecurity=False)
    lines = [repo_id, str(parent), title, author, date.isoformat(), tree_oid(files)]
    digest.update("\0".join(lines).encode())
    return digest.hexdigest()


def tree_oid(files: Mapping[str, StoredFile]) -> str:
    """40 hex digits over paths and contents."""
    rows = "".join(f"{path}\0{files[path].blob_id}\n" for path in sorted(files))
    return hashlib.sha1(rows.encode(), usedforsecurity=False).hexdigest()
