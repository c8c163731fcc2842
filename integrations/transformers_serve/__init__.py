"""`transformers serve` with ReFT adapters as models, one for each request. Needs the extra `serving`."""

from __future__ import annotations

from .server import serve_with

__all__ = ["serve_with"]
