"""Large files: the batch call on the hub, the bytes on the CDN."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .access import Access
from .bytes_range import bytes_response
from .errors import HubError, not_served
from .links import Links
from .storage import Storage


class LfsRoutes:
    """Handlers of the Git LFS protocol, basic transfers only."""

    def __init__(self, storage: Storage, access: Access, links: Links, endpoint: str) -> None:
        self._storage = storage
        self._access = access
        self._links = links
        self._endpoint = endpoint

    def hub_table(self) -> list[Route]:
        """The routes on the hub's own origin."""
        objects = "/{owner}/{name}.git/info/lfs/objects"
        return [
            Route(f"{objects}/batch", self.batch, methods=["POST"]),
            Route(f"{objects}/verify", self.verify, methods=["POST"]),
        ]

    def cdn_table(self) -> list[Route]:
        """The routes on the storage origin."""
        return [
            Route("/cdn/{owner}/{name}/{sha256}", self.put, methods=["PUT"]),
            Route("/cdn/{owner}/{name}/{sha256}/{file_name}", self.get),
        ]

    async def batch(self, request: Request) -> Response:
        """POST …/objects/batch: a signed upload link for each object that is not here yet.

        Without a `ref` the objects are for a pull request, which takes no right to write.
        """
        body = await request.json()
        if body.get("operation") != "upload" or "basic" not in body.get("transfers", ["basic"]):
            raise not_served(f"LFS {body.get('operation')} by {body.get('transfers')}")
        repo = self._access.writable(request) if body.get("ref") else self._access.proposable(request)
        rows: list[dict[str, Any]] = []
        for wanted in body["objects"]:
            row: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.lfs:
                verify = f"{self._endpoint}/{repo.repo_id}.git/info/lfs/objects/verify"
                upload = self._links.upload(repo.repo_id, wanted["oid"])
                row["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            rows.append(row)
        return JSONResponse({"transfer": "basic", "objects": rows})

    async def verify(self, request: Request) -> Response:
        """POST …/objects/verify: is the object here, in the size the client says?"""
        repo = self._access.proposable(request)
        body = await request.json()
        stored = repo.lfs.get(body["oid"])
        if stored is None or len(stored) != body["size"]:
            raise HubError(422, f"LFS object {body['oid']} of {body['size']} bytes is not stored")
        return JSONResponse({})

    async def put(self, request: Request) -> Response:
        """PUT of an upload link; bytes that are not those of the sha256 are refused."""
        repo_id, sha256 = self._links.checked(request, "PUT")
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "XAmzContentSHA256Mismatch")
        self._storage.repos[repo_id].lfs[sha256] = content
        return Response(headers={"ETag": f'"{sha256}"'})

    async def get(self, request: Request) -> Response:
        """GET of a download link."""
        repo_id, sha256 = self._links.checked(request, "GET")
        return bytes_response(request, self._storage.repos[repo_id].lfs[sha256], {"ETag": f'"{sha256}"'})
