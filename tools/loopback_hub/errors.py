"""The errors a Hub answers with, in the headers the client reads."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """An answer other than success: status, `X-Error-Code` (the client picks its exception by it), message."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The HTTP response: the message both in the body and, for HEAD, in a header."""
        headers = {"X-Error-Message": header_text(self.message), **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, status_code=self.status, headers=headers)


def header_text(text: str) -> str:
    """`text` on one line of ASCII, as a header holds it."""
    return " ".join(text.split()).encode("ascii", "replace").decode("ascii")


async def hub_error_response(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for `HubError`."""
    if not isinstance(error, HubError):
        raise error
    return error.response()


def repo_not_found(*, anonymous: bool) -> HubError:
    """A repository that is not there or that this caller may not see; the two look alike, 401 without a token.

    The code is sent with the 401 too: without one the client takes a 401 for a missing repository on https only.
    """
    message = "Invalid username or password." if anonymous else "Repository not found"
    return HubError(401 if anonymous else 404, message, code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """No branch, tag, pull request or commit of that name."""
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str, commit: str) -> HubError:
    """No such file; `X-Repo-Commit` lets the client remember that in its cache."""
    return HubError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit})


def not_served(what: str) -> HubError:
    """A part of the Hub that is not built here. 501, since the client does not retry it."""
    return HubError(501, f"The loopback hub does not serve {what}; add it to tools/loopback_hub.")
