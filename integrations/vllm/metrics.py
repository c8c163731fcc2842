"""Numbers by adapter for Prometheus, beside vLLM's own, at the server's `/metrics`."""

from __future__ import annotations

from typing import Any

__all__ = ["Metrics", "Prometheus"]


class Metrics:
    """Counts nothing: of an engine without a server."""

    def admitted(self, adapter: str, prompt: int) -> None:
        """A request with so many prompt tokens was admitted."""

    def loaded(self, adapters: int) -> None:
        """So many adapters are served now."""


class Prometheus(Metrics):
    """Counts for `/metrics`."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge

        self.requests: Any = Counter("vllm:reft_requests", "Requests admitted, by ReFT adapter.", ["adapter"])
        self.tokens: Any = Counter("vllm:reft_prompt_tokens", "Their prompt tokens.", ["adapter"])
        self.adapters: Any = Gauge("vllm:reft_adapters", "ReFT adapters that are served.")

    def admitted(self, adapter: str, prompt: int) -> None:
        """Counted by name; unknown names are refused before, so nobody can make labels up."""
        self.requests.labels(adapter).inc()
        self.tokens.labels(adapter).inc(prompt)

    def loaded(self, adapters: int) -> None:
        """The gauge."""
        self.adapters.set(adapters)
