"""ReFT on vLLM: hundreds of adapters on one base, one for each request. Needs the extra `vllm`; importing does not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llm import ReftLLM, ReftRequest

__all__ = ["ReftLLM", "ReftRequest"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(".llm", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
