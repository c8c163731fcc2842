"""vLLM's general plugin: every process of an engine knows the operator before it reads a graph that calls it."""

from __future__ import annotations

from importlib import import_module

__all__ = ["register"]


def register() -> None:
    """Register the operator; it edits nothing until a worker of ours says so."""
    import_module("peft_reft.integrations.vllm.op")
