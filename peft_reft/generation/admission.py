"""How requests enter a manager of continuous batching, and what is refused of it and of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft_reft.hub_format.errors import ConfigError, LocationError
from peft_reft.runtime.inputs import EXPLICIT

from .asked import AskedRequests, named_prompts

__all__ = ["adding", "adding_several", "refuse_explicit", "refuse_replay"]


def refuse_replay(settings: Any) -> None:
    """Refuse settings by which one batch's edits would be replayed for another."""
    stated = {
        "use_cuda_graph": any(settings.cuda_graph_booleans),
        "varlen_compile_config": settings.varlen_compile_config is not None,
        "decode_compile_config": settings.decode_compile_config is not None,
        "default_compile_level": bool(settings.default_compile_level),
    }
    for name in (name for name, value in stated.items() if value):
        raise ConfigError(
            f"continuous batching with {name}={getattr(settings, name)!r} on a model with ReFT adapters",
            code="continuous.replay",
            value=getattr(settings, name),
            rule="a graph replays one batch's edits for another, and any batch can hold a prompt's last token",
            fix=f"leave {name} out, or unload the adapters",
        )


def refuse_explicit(kwargs: Mapping[str, Any]) -> None:
    """Refuse positions that a call states, which transformers' own methods would ignore."""
    for name in EXPLICIT:
        if kwargs.get(name) is not None:
            raise LocationError(
                f"{name} is not supported by continuous batching",
                code="positions.continuous",
                value=name,
                rule="a request is its tokens alone, all of them prompt",
                fix="leave it out, or use generate",
            )


def adding(manager: Any, asked: AskedRequests) -> Callable[..., Any]:
    """The manager's own `add_request`, which takes `adapter_names` too: a name, or a tuple of names that add."""
    own = manager.add_request

    def add_request(
        input_ids: Any, request_id: str | None = None, *args: Any, adapter_names: Any = None, **kwargs: Any
    ) -> Any:
        refuse_explicit(kwargs)
        names = getattr(input_ids, "adapter_names", None) if adapter_names is None else adapter_names

        asked.check_id(request_id, names, manager)

        def hand_on(request: str | None) -> Any:
            return own(input_ids, request, *args, **kwargs)

        return asked.add(hand_on, input_ids, request_id, names)

    return add_request


def adding_several(manager: Any, asked: AskedRequests) -> Callable[..., Any]:
    """The manager's own `add_requests`, which takes `adapter_names` too: a list with an entry for every request."""
    own = manager.add_requests

    def add_requests(inputs: Any, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
        refuse_explicit(kwargs)
        if adapter_names is not None:
            inputs = named_prompts(inputs, adapter_names)
            asked.check(adapter_names)  # all of them, before one is sent
        return own(inputs, *args, **kwargs)

    return add_requests
