"""Signed links to the CDN: whoever holds one needs no token."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import quote

from starlette.requests import Request

from .access import path_value, repo_id_of
from .errors import HubError


class Links:
    """Makes and checks links; one is good for one method and one object."""

    def __init__(self, cdn_endpoint: str) -> None:
        self._endpoint = cdn_endpoint
        self._secret = secrets.token_bytes(32)

    def download(self, repo_id: str, sha256: str, file_name: str) -> str:
        """Where the bytes can be had; the file's name is part of it so that faults can be aimed."""
        return f"{self._object(repo_id, sha256)}/{quote(file_name)}?signature={self._sign('GET', repo_id, sha256)}"

    def upload(self, repo_id: str, sha256: str) -> str:
        """Where the bytes can be put."""
        return f"{self._object(repo_id, sha256)}?signature={self._sign('PUT', repo_id, sha256)}"

    def checked(self, request: Request, method: str) -> tuple[str, str]:
        """The repository id and sha256 of a link that was made here for `method`, else 403."""
        repo_id, sha256 = repo_id_of(request), path_value(request, "sha256")
        signature = request.query_params.get("signature", "")
        if not hmac.compare_digest(signature, self._sign(method, repo_id, sha256)):
            raise HubError(403, "SignatureDoesNotMatch")
        return repo_id, sha256

    def _object(self, repo_id: str, sha256: str) -> str:
        return f"{self._endpoint}/cdn/{quote(repo_id)}/{sha256}"

    def _sign(self, method: str, repo_id: str, sha256: str) -> str:
        return hmac.new(self._secret, f"{method} {repo_id} {sha256}".encode(), hashlib.sha256).hexdigest()
