"""`peft-reft serve --engine transformers`: transformers' own server, whose model is a base with adapters.

The server is made by its own code and changed on the instance before it runs: its model, how handlers find the model
that a request names, and what they generate with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_reft.hub_format.errors import ConfigError

__all__ = ["serve_with"]

HANDLERS = ("_chat_handler", "_completion_handler", "_response_handler")
"""Those that generate text; the others answer with the base alone."""
WAIT = "--non-blocking"
"""By this argument the server calls a method of its own when it is made, which is where we come in."""


def serve_with(base: str, adapters: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Run the server until it is ended.

    Args:
        base: folder or repository of a whole model.
        adapters: name → folder or repository.
        arguments: of `transformers serve`.

    Raises:
        ReftError: an adapter, or an argument, that cannot be served.
        TyperException: an argument that `transformers serve` does not know.
    """
    import typer
    from transformers.cli.serve import Serve
    from typer.main import get_command

    from .adapters import opened

    if "--compile" in arguments:
        raise ConfigError(
            "--compile with ReFT adapters",
            code="serve.compile",
            value="--compile",
            rule="a compiled step would be made anew for every adapter",
            fix="leave it out",
        )
    folders = opened(adapters)
    if base in folders:
        raise ConfigError(f"the adapter name {base!r} is the base's", code="name", value=base, fix="rename it")

    class ReftServe(Serve):  # type: ignore[misc]  # its arguments are those of the class
        def start_server(self) -> None:
            attach(self, base, folders)
            self.server.run()

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name="serve")(ReftServe)
    get_command(app).main(args=[base, *arguments, WAIT], prog_name="peft-reft serve", standalone_mode=False)


def attach(server: Any, base: str, folders: Mapping[str, Path]) -> None:
    """Let a server that does not run yet serve adapters beside its base.

    Args:
        server: transformers' `Serve`.
        base: name of the model that it was started with.
        folders: name → folder of an adapter's files.
    """
    from .adapters import with_adapters
    from .naming import NamingState

    manager, names = server._model_manager, frozenset(folders)
    if not folders:
        return
    for held in manager.loaded_models.values():
        held.model = with_adapters(held.model, folders)
    load = manager._load_model
    manager._load_model = lambda *args, **kwargs: with_adapters(load(*args, **kwargs), folders)
    known = manager.process_model_name(base)
    stream = manager.load_model_streaming
    manager.load_model_streaming = lambda model, **kwargs: stream(_loaded(model, known, names), **kwargs)
    listed = _listed([base, *folders])
    manager.get_gen_models = lambda *args: listed
    for name in HANDLERS:
        handler = getattr(server, name)
        handler._resolve_model = _resolving(handler._resolve_model, base, names)
        handler.generation_state = NamingState(handler.generation_state, known, names)


def _loaded(model: str, known: str, names: frozenset[str]) -> str:
    """What `/load_model` is to load: of an adapter, its base."""
    return known if model.partition("@")[0] in names else model


def _resolving(own: Callable[..., Any], base: str, names: frozenset[str]) -> Callable[..., Any]:
    """A handler's `_resolve_model`, which knows the adapters as models too."""

    def resolve(body: dict[str, Any]) -> Any:
        from fastapi import HTTPException

        asked = body.get("model")
        if asked is not None and asked != base and asked not in names:
            served = ", ".join(map(repr, [base, *sorted(names)]))
            raise HTTPException(status_code=404, detail=f"No model {str(asked)[:80]!r}; this server has {served}.")
        body["model"] = base
        model_id, model, processor = own(body)
        return (asked if asked in names else model_id), model, processor

    return resolve


def _listed(names: Sequence[str]) -> list[dict[str, Any]]:
    """What `/v1/models` tells."""
    now = int(time.time())
    return [{"id": name, "object": "model", "owned_by": "", "created": now} for name in names]
