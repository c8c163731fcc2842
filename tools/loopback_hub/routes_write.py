"""Commits, pull requests, tags and branches."""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .access import Access, path_value
from .errors import HubError, entry_not_found, not_served, revision_not_found
from .objects import Commit, StoredFile
from .storage import LFS_SIZE, LFS_SUFFIXES, Repository


class WriteRoutes:
    """Handlers that move refs."""

    def __init__(self, access: Access, endpoint: str) -> None:
        self._access = access
        self._endpoint = endpoint

    def table(self) -> list[Route]:
        """The routes."""
        model = "/api/models/{owner}/{name}"
        return [
            Route(f"{model}/preupload/{{revision}}", self.preupload, methods=["POST"]),
            Route(f"{model}/commit/{{revision}}", self.commit, methods=["POST"]),
            Route(f"{model}/tag/{{revision}}", self.create_tag, methods=["POST"]),
            Route(f"{model}/tag/{{tag}}", self.delete_tag, methods=["DELETE"]),
            Route(f"{model}/branch/{{branch}}", self.create_branch, methods=["POST"]),
            Route(f"{model}/branch/{{branch}}", self.delete_branch, methods=["DELETE"]),
        ]

    async def preupload(self, request: Request) -> Response:
        """POST …/preupload/{revision}: LFS or not, and what lies there now (unchanged files are then skipped)."""
        repo = self._pushable(request)
        head = repo.resolve(path_value(request, "revision"))
        body = await request.json()
        if "gitIgnore" in body:
            raise not_served("a .gitignore")
        rows = []
        for wanted in body["files"]:
            path, present = wanted["path"], head.files.get(wanted["path"])
            large = path.endswith(LFS_SUFFIXES) or wanted["size"] > LFS_SIZE
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            rows.append(row if present is None else {**row, "oid": present.etag})
        return JSONResponse({"files": rows})

    async def commit(self, request: Request) -> Response:
        """POST …/commit/{revision}[?create_pr=1], lines of JSON: a header, then operations in order."""
        repo = self._pushable(request)
        revision = path_value(request, "revision")
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        header = _header_of(lines)
        author = self._access.signed_in(request).user
        title, message = header["summary"], header.get("description") or ""
        parent = header.get("parentCommit")
        base = repo.commits[repo.refs[repo.writable_ref(revision)]]
        if not _opens_pull_request(request):
            changes = _changes(repo, base, lines[1:])
            made = repo.commit(changes, revision=revision, title=title, message=message, author=author, parent=parent)
            return JSONResponse(self._answer(repo, made))
        base = base if parent is None else repo.resolve(parent)
        ref = repo.open_pull_request(
            base, _changes(repo, base, lines[1:]), title=title, message=message, author=author
        )
        url = f"{self._endpoint}/{repo.repo_id}/discussions/{ref.removeprefix('refs/pr/')}"
        return JSONResponse({**self._answer(repo, repo.resolve(ref)), "pullRequestUrl": url})

    async def create_tag(self, request: Request) -> Response:
        """POST …/tag/{revision}."""
        repo = self._access.writable(request)
        commit = repo.resolve(path_value(request, "revision"))
        tag = (await request.json())["tag"]
        if f"refs/tags/{tag}" in repo.refs:
            raise HubError(409, f"Tag {tag!r} already exists")
        repo.refs[f"refs/tags/{tag}"] = commit.oid
        return JSONResponse({})

    async def delete_tag(self, request: Request) -> Response:
        """DELETE …/tag/{tag}."""
        repo = self._access.writable(request)
        tag = path_value(request, "tag")
        if repo.refs.pop(f"refs/tags/{tag}", None) is None:
            raise revision_not_found(tag)
        return JSONResponse({})

    async def create_branch(self, request: Request) -> Response:
        """POST …/branch/{branch}."""
        repo = self._access.writable(request)
        branch = path_value(request, "branch")
        start = repo.resolve((await request.json()).get("startingPoint", "main"))
        if f"refs/heads/{branch}" in repo.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.refs[f"refs/heads/{branch}"] = start.oid
        return JSONResponse({})

    async def delete_branch(self, request: Request) -> Response:
        """DELETE …/branch/{branch}."""
        repo = self._access.writable(request)
        branch = path_value(request, "branch")
        if branch == "main":
            raise HubError(403, "Cannot delete the default branch")
        if repo.refs.pop(f"refs/heads/{branch}", None) is None:
            raise revision_not_found(branch)
        return JSONResponse({})

    def _pushable(self, request: Request) -> Repository:
        opens = _opens_pull_request(request)
        return self._access.proposable(request) if opens else self._access.writable(request)

    def _answer(self, repo: Repository, commit: Commit) -> dict[str, Any]:
        url = f"{self._endpoint}/{repo.repo_id}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}


def _opens_pull_request(request: Request) -> bool:
    return request.query_params.get("create_pr") == "1"


def _header_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    if not lines or lines[0].get("key") != "header":
        raise HubError(400, "The first line of a commit must be its header")
    header: dict[str, Any] = lines[0]["value"]
    return header


def _changes(repo: Repository, base: Commit, operations: list[dict[str, Any]]) -> dict[str, StoredFile | None]:
    changes: dict[str, StoredFile | None] = {}
    for operation in operations:
        key, value = operation["key"], operation["value"]
        path = value["path"]
        if key == "file" and value.get("encoding") == "base64":
            changes[path] = StoredFile.regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            changes[path] = _stored_lfs_file(repo, value["oid"])
        elif key == "deletedFile":
            changes[path] = None
        elif key == "deletedFolder":
            inside = [known for known in base.files if known.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise entry_not_found(f"A folder with this name doesn't exist: {path}", base.oid)
            changes |= dict.fromkeys(inside)
        else:
            raise not_served(f"the commit operation {key!r}")
    return changes


def _stored_lfs_file(repo: Repository, sha256: str) -> StoredFile:
    content = repo.lfs.get(sha256)
    if content is None:
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
    return StoredFile.lfs(sha256, len(content))
