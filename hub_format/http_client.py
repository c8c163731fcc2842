"""Errors of the HTTP library that the installed huggingface_hub speaks with: httpx2, or httpx in older versions."""

from __future__ import annotations

import importlib

from huggingface_hub.errors import HfHubHTTPError

__all__ = ["ConnectError", "TransportError"]

_HTTP_ERROR = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
_LIBRARY = importlib.import_module(_HTTP_ERROR.__module__.partition(".")[0])

ConnectError: type[Exception] = _LIBRARY.ConnectError
TransportError: type[Exception] = _LIBRARY.TransportError
