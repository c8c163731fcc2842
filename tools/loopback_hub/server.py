"""The hub in a thread."""

from __future__ import annotations

import pathlib
import socket
import tempfile
import threading
import time
from types import TracebackType
from typing import Self

import uvicorn
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from .access import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, Access
from .errors import HubError, hub_error_response, not_served
from .faults import Faults
from .links import Links
from .routes_lfs import LfsRoutes
from .routes_read import ReadRoutes
from .routes_repos import RepoRoutes
from .routes_write import WriteRoutes
from .storage import Storage
from .wire import LoggedRequest, Wire

_START_SECONDS = 10.0


class LoopbackHub:
    """A Hub for as long as the `with` block lasts, on a port of its own, empty at first.

    `token` writes for user "me", `read_token` only reads for "me", `stranger_token` is another user's. The hub is on
    127.0.0.1 and its CDN on localhost, two origins; a token that reaches the CDN, or a bug in the hub, makes the
    block end with an error. `storage` may be looked at and filled directly, `faults` armed, `requests` read.
    """

    token = WRITE_TOKEN
    read_token = READ_TOKEN
    stranger_token = STRANGER_TOKEN

    def __init__(self, *, port: int = 0) -> None:
        self._port = port
        self.storage = Storage()
        self.faults = Faults()

    def __enter__(self) -> Self:
        # The protocol by name: asyncio sets TCP_NODELAY on such sockets only, and without it a POST takes 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self._port))
        port = self._socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn_endpoint = f"http://localhost:{port}"
        self._wire = self._assemble()
        self._homes = tempfile.TemporaryDirectory(prefix="loopback-hub-", ignore_cleanup_errors=True)
        config = uvicorn.Config(
            self._wire, lifespan="off", log_config=None, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="loopback-hub", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the loopback hub did not start on {self.endpoint}")
            time.sleep(0.005)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._homes.cleanup()
        if self._wire.problems:
            raise self._wire.problems[0]

    @property
    def requests(self) -> list[LoggedRequest]:
        """Every request so far, in order of arrival."""
        return self._wire.requests

    def environment(self, *, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Variables for a client process, to be laid over its own; None as token means no token.

        Each call makes a fresh, empty HF_HOME, so each client has a cache of its own; keep the dict to share one.
        huggingface_hub reads them when it is imported: set them before, not in a process that has imported it.
        """
        home = pathlib.Path(tempfile.mkdtemp(dir=self._homes.name))
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token or "",
            "HF_HOME": str(home),
            # Laid over the caller's, which would win over HF_HOME, HF_TOKEN and HF_ENDPOINT.
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_OIDC_RESOURCE": "",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def _assemble(self) -> Wire:
        access = Access(self.storage)
        links = Links(self.cdn_endpoint)
        lfs = LfsRoutes(self.storage, access, links, self.endpoint)
        repos = RepoRoutes(self.storage, access, self.endpoint)
        reads, writes = ReadRoutes(access, links), WriteRoutes(access, self.endpoint)
        hub = _router([*lfs.hub_table(), *reads.table(), *writes.table(), *repos.table()])
        return Wire(hub, _router(lfs.cdn_table()), self.faults)


def _router(routes: list[Route]) -> ASGIApp:
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    every = Route("/{path:path}", _unknown, methods=methods)
    return ExceptionMiddleware(Router([*routes, every]), handlers={HubError: hub_error_response})


async def _unknown(request: Request) -> Response:
    raise not_served(f"{request.method} {request.url.path}")
