"""Trees, refs, history and the files themselves."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from .access import Access, path_value
from .bytes_range import bytes_response
from .errors import entry_not_found, not_served
from .links import Links
from .objects import Commit, StoredFile, tree_oid
from .storage import Repository


class ReadRoutes:
    """Handlers that change nothing."""

    def __init__(self, access: Access, links: Links) -> None:
        self._access = access
        self._links = links

    def table(self) -> list[Route]:
        """The routes."""
        model = "/api/models/{owner}/{name}"
        return [
            Route(f"{model}/tree/{{revision}}", self.tree),
            Route(f"{model}/tree/{{revision}}/{{path:path}}", self.tree),
            Route(f"{model}/paths-info/{{revision}}", self.paths_info, methods=["POST"]),
            Route(f"{model}/refs", self.refs),
            Route(f"{model}/commits/{{revision}}", self.commits),
            Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
        ]

    async def tree(self, request: Request) -> Response:
        """GET …/tree/{revision}[/{folder}]; without paging, a gate does not hide names."""
        commit = self._access.visible(request).resolve(path_value(request, "revision"))
        query = request.query_params
        if query.get("expand", "false").lower() == "true":
            raise not_served("expand of a tree")
        folder = path_value(request, "path").strip("/") if "path" in request.path_params else ""
        rows = _rows_under(commit, folder, recursive=query.get("recursive", "false").lower() == "true")
        if folder and not rows:
            raise entry_not_found(f"{folder} does not exist on {path_value(request, 'revision')!r}", commit.oid)
        return JSONResponse(rows)

    async def paths_info(self, request: Request) -> Response:
        """POST …/paths-info/{revision}, a form: what is known of each path; unknown paths are left out."""
        commit = self._access.visible(request).resolve(path_value(request, "revision"))
        form = parse_qs((await request.body()).decode())
        if form.get("expand", ["False"])[0].lower() == "true":
            raise not_served("expand of paths-info")
        rows = {row["path"]: row for row in _rows_under(commit, "", recursive=True)}
        return JSONResponse([rows[path] for path in form.get("paths", []) if path in rows])

    async def refs(self, request: Request) -> Response:
        """GET …/refs."""
        repo = self._access.visible(request)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
        if request.query_params.get("include_prs") == "1":
            kinds["pullRequests"] = "refs/pr/"
        return JSONResponse({kind: _refs_under(repo, prefix) for kind, prefix in kinds.items()})

    async def commits(self, request: Request) -> Response:
        """GET …/commits/{revision}, newest first."""
        repo = self._access.visible(request)
        return JSONResponse(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": commit.timestamp,
                }
                for commit in repo.history(repo.resolve(path_value(request, "revision")))
            ]
        )

    async def resolve(self, request: Request) -> Response:
        """HEAD, GET /{id}/resolve/{revision}/{path}: the bytes, or for an LFS file a signed link to the CDN."""
        repo = self._access.downloadable(request)
        commit = repo.resolve(path_value(request, "revision"))
        path = path_value(request, "path")
        file = commit.files.get(path)
        if file is None:
            raise entry_not_found(f"Entry not found: {path}", commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
        if file.content is not None:
            return bytes_response(request, file.content, headers)
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        link = self._links.download(repo.repo_id, file.etag, path.rsplit("/", 1)[-1])
        return RedirectResponse(link, status_code=302, headers=headers)


def _rows_under(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = prefix + "/".join(parts[:depth])
            rows.setdefault(parent, _folder_row(commit, parent))
        if recursive or len(parts) == 1:
            rows[path] = _file_row(path, file)
    return [rows[path] for path in sorted(rows)]


def _folder_row(commit: Commit, folder: str) -> dict[str, Any]:
    inside = {path: file for path, file in commit.files.items() if path.startswith(f"{folder}/")}
    return {"type": "directory", "path": folder, "oid": tree_oid(inside), "size": 0}


def _file_row(path: str, file: StoredFile) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
    if file.sha256 is not None:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return row


def _refs_under(repo: Repository, prefix: str) -> list[dict[str, str]]:
    return [
        {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
        for ref, oid in sorted(repo.refs.items())
        if ref.startswith(prefix)
    ]
