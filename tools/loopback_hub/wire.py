"""The outermost layer: which origin is meant, what was asked, which fault is armed, what went wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import HubError
from .faults import Faults

_logger = logging.getLogger(__name__)


class ClientLeakedTokenError(AssertionError):
    """A client sent its token to the storage origin, where links are signed and no token may go."""

    def __init__(self, request_line: str) -> None:
        super().__init__(f"An Authorization header reached the CDN with {request_line!r}")


class HubFailedError(RuntimeError):
    """The hub itself raised while it served a request: a bug in tools/loopback_hub, not in the client."""

    def __init__(self, request_line: str, error: Exception) -> None:
        super().__init__(f"The loopback hub failed on {request_line!r}: {error!r}")


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request as it arrived; `path` is as sent, `origin` is "hub" or "cdn"."""

    origin: str
    method: str
    path: str
    query: str
    authorized: bool

    @property
    def line(self) -> str:
        """`METHOD /path`, what fault patterns are searched in."""
        return f"{self.method} {self.path}"


class Wire:
    """The ASGI application that uvicorn serves for both origins."""

    def __init__(self, hub: ASGIApp, cdn: ASGIApp, faults: Faults) -> None:
        self._origins = {"hub": hub, "cdn": cdn}
        self._faults = faults
        self.requests: list[LoggedRequest] = []
        self.problems: list[Exception] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; an unforeseen exception is kept for the end and answered with a 501."""
        logged = _logged(scope)
        self.requests.append(logged)
        app = self._origins[logged.origin]
        effect = self._faults.take(logged.line)
        if effect is not None:
            app = effect(app)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if logged.origin == "cdn" and logged.authorized:
                self.problems.append(ClientLeakedTokenError(logged.line))
                raise HubError(400, "Only one auth mechanism allowed")
            # Routes match the path as it was sent: a revision such as `dev%2Fx` is one segment.
            await app({**scope, "path": logged.path}, receive, watched)
        except HubError as error:
            await error.response()(scope, receive, send)
        except Exception as error:
            _logger.exception("failed on %s", logged.line)
            self.problems.append(HubFailedError(logged.line, error))
            if not started:
                await HubError(501, f"The loopback hub failed: {error!r}").response()(scope, receive, send)


def _logged(scope: Scope) -> LoggedRequest:
    request = Request(scope)
    return LoggedRequest(
        origin="cdn" if request.headers.get("host", "").startswith("localhost") else "hub",
        method=request.method,
        path=scope["raw_path"].decode("ascii"),
        query=scope["query_string"].decode("ascii"),
        authorized="authorization" in request.headers,
    )
