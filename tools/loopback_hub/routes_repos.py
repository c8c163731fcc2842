"""Who am I; create, delete and set up repositories; what a model is."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .access import Access, path_value
from .cards import CardError, card_data
from .errors import not_served, repo_not_found
from .objects import Commit, StoredFile
from .storage import Repository, Storage


class RepoRoutes:
    """Handlers about whole repositories."""

    def __init__(self, storage: Storage, access: Access, endpoint: str) -> None:
        self._storage = storage
        self._access = access
        self._endpoint = endpoint

    def table(self) -> list[Route]:
        """The routes, most special first."""
        model = "/api/models/{owner}/{name}"
        return [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/repos/delete", self.delete, methods=["DELETE"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route(f"{model}/settings", self.settings, methods=["PUT"]),
            Route(f"{model}/revision/{{revision}}", self.info),
            Route(model, self.info),
            # Names without an owner ("gpt2") exist on the real Hub only.
            Route("/api/models/{name}", self.no_such_repo),
            Route("/{name}/resolve/{rest:path}", self.no_such_repo),
        ]

    async def whoami(self, request: Request) -> Response:
        """GET /api/whoami-v2."""
        account = self._access.signed_in(request)
        token = {"displayName": "loopback", "role": account.role}
        auth = {"type": "access_token", "accessToken": token}
        return JSONResponse({"type": "user", "name": account.user, "orgs": [], "auth": auth})

    async def create(self, request: Request) -> Response:
        """POST /api/repos/create."""
        body = await request.json()
        owner = body.get("organization") or self._access.signed_in(request).user
        self._access.writer(request, owner)
        _models_only(body)
        repo_id = f"{owner}/{body['name']}"
        url = {"url": f"{self._endpoint}/{repo_id}", "id": repo_id}
        if repo_id in self._storage.repos:
            # With its URL even so: create_repo(exist_ok=True) reads it from the 409.
            conflict = {"error": "You already created this model repo", **url}
            return JSONResponse(conflict, status_code=409, headers={"X-Error-Message": conflict["error"]})
        private = body.get("visibility") == "private" or body.get("private") is True
        self._storage.create(repo_id, private=private)
        return JSONResponse(url)

    async def delete(self, request: Request) -> Response:
        """DELETE /api/repos/delete."""
        body = await request.json()
        _models_only(body)
        owner = body.get("organization") or self._access.signed_in(request).user
        repo = self._access.writable(request, f"{owner}/{body['name']}")
        del self._storage.repos[repo.repo_id]
        return JSONResponse({})

    async def settings(self, request: Request) -> Response:
        """PUT /api/models/{id}/settings."""
        repo = self._access.writable(request)
        body: dict[str, Any] = await request.json()
        unknown = body.keys() - {"gated", "private", "visibility"}
        if unknown:
            raise not_served(f"the settings {sorted(unknown)}")
        repo.gated = body.get("gated", repo.gated)
        repo.private = body.get("private", repo.private)
        if "visibility" in body:
            repo.private = body["visibility"] == "private"
        return JSONResponse({"gated": repo.gated, "private": repo.private})

    async def validate_yaml(self, request: Request) -> Response:
        """POST /api/validate-yaml."""
        body = await request.json()
        try:
            data = card_data(body["content"])
        except CardError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, status_code=400)
        missing = {"message": "empty or missing yaml metadata in repo card"}
        return JSONResponse({"errors": [], "warnings": [missing] if data is None else []})

    async def info(self, request: Request) -> Response:
        """GET /api/models/{id}[/revision/{revision}]; seeing it takes no passing of the gate."""
        repo = self._access.visible(request)
        unserved = {"expand", "securityStatus"} & request.query_params.keys()
        if unserved:
            raise not_served(f"{sorted(unserved)} of model info")
        revision = path_value(request, "revision") if "revision" in request.path_params else "main"
        with_blobs = request.query_params.get("blobs", "").lower() == "true"
        return JSONResponse(_model_info(repo, repo.resolve(revision), with_blobs=with_blobs))

    async def no_such_repo(self, request: Request) -> Response:
        """Any repository that cannot be here."""
        raise repo_not_found(anonymous=self._access.account(request) is None)


def _models_only(body: dict[str, Any]) -> None:
    if body.get("type") not in (None, "model"):
        raise not_served(f"repositories of type {body['type']!r}")


def _model_info(repo: Repository, commit: Commit, *, with_blobs: bool) -> dict[str, Any]:
    card = _card_of(commit)
    return {
        "_id": commit.oid[:24],
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.owner,
        "sha": commit.oid,
        "createdAt": repo.history(commit)[-1].timestamp,
        "lastModified": commit.timestamp,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags", []),
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
        "siblings": [_sibling(path, file, with_blobs) for path, file in sorted(commit.files.items())],
    }


def _card_of(commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    if readme is None or readme.content is None:
        return {}
    try:
        return card_data(readme.content.decode("utf-8", "replace")) or {}
    except CardError:
        return {}


def _sibling(path: str, file: StoredFile, with_blobs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        row |= {"size": file.size, "blobId": file.blob_id}
        if file.sha256 is not None:
            row["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": file.pointer_size}
    return row
