"""Answers with bytes, whole or a Range of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def bytes_response(request: Request, body: bytes, headers: Mapping[str, str]) -> Response:
    """200 with all of `body`, 206 with the one range asked for, or 416 where it lies outside."""
    kept = {"Accept-Ranges": "bytes", **headers}
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return Response(body, headers=kept, media_type="application/octet-stream")
    first, last = match.groups()
    start = int(first) if first else max(0, len(body) - int(last))
    stop = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= stop:
        return Response(status_code=416, headers={**kept, "Content-Range": f"bytes */{len(body)}"})
    kept["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
    return Response(body[start:stop], status_code=206, headers=kept, media_type="application/octet-stream")
