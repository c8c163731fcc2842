"""Between the server's handlers and its generation: every request is handed on with the adapter that it named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.cli.serving.utils import BaseGenerateManager

from peft_reft.generation.asked import Prompt
from peft_reft.runtime.row_choice import BASE

__all__ = ["NamingManager", "NamingState"]


class NamingManager(BaseGenerateManager):  # type: ignore[misc]  # transformers' types are not followed
    """One adapter's view of the manager that generates for all.

    Args:
        own: that manager.
        adapter: a name, or `"__base__"`.
    """

    def __init__(self, own: Any, adapter: str) -> None:
        self.own: Any = own
        self.adapter: str = adapter

    def init_cb(self, model: Any, gen_config: Any) -> None:
        """Start continuous batching, for all adapters."""
        self.own.init_cb(model, gen_config)

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the manager's own."""
        return self.own.generate_streaming(model, processor, self._named(inputs), *args, **kwargs)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[str, int, Any]:
        """As the manager's own."""
        told: tuple[str, int, Any] = await self.own.generate_non_streaming(
            model, processor, self._named(inputs), *args, **kwargs
        )
        return told

    def stop(self) -> None:
        """Stop generating, for all adapters."""
        self.own.stop()

    def _named(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """With the name where it is looked for: on a request's ids, or beside the arguments of `generate`."""
        ids = inputs["input_ids"]
        if isinstance(ids, list):
            return {**inputs, "input_ids": Prompt(ids, self.adapter)}
        return {**inputs, "adapter_names": [self.adapter]}


class NamingState:
    """The server's generation state, asked by the model that a request named.

    Args:
        own: of the server.
        model: id under which it knows the one model.
        names: of the adapters.
    """

    def __init__(self, own: Any, model: str, names: frozenset[str]) -> None:
        self.own: Any = own
        self.model: str = model
        self.names: frozenset[str] = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def get_manager(self, model_id: str, use_cb: bool = False) -> NamingManager:
        """The manager of the one model, for the adapter that is named in its place."""
        adapter = model_id if model_id in self.names else BASE
        return NamingManager(self.own.get_manager(self.model, use_cb=use_cb), adapter)
