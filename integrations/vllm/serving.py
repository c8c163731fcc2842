"""The server's side: adapters as models of the OpenAI-compatible API, and the routes that load and unload them.

An endpoint plugin of vLLM (`vllm.endpoint_plugins`), loaded where `peft-reft serve` asks for it.
"""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm.lora.request import LoRARequest

from peft_reft.hub_format.errors import AdapterLoadError, ConfigError

from .admission import Gate
from .catalogue import Catalogue, Entry, no_lora
from .metrics import Prometheus
from .routes import attach
from .settings import Settings

__all__ = ["VARIABLE", "ReftEndpoints", "ServeOptions", "Server"]

VARIABLE = "PEFT_REFT_SERVE"
"""Environment variable by which the command tells the server what to load: it is of the server, not of the engine."""
WITH_BEAMS = (
    "openai_serving_chat",
    "openai_serving_chat_batch",
    "openai_serving_completion",
    "openai_serving_responses",
    "anthropic_serving_messages",
    "cohere_serving_chat_v2",
)
"""Handlers in the server's state that can search with beams."""


class ServedReft(LoRARequest):  # type: ignore[misc]  # vLLM's types are not followed
    """A ReFT adapter as the server's list of models holds it; the gate makes an adapter of it again."""

    reft_name: str | None = None


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says beside vLLM's own arguments.

    Attributes:
        adapters: name → folder or repository.
        allow_runtime_loading: whether the server has routes that load and unload.
    """

    adapters: dict[str, str] = field(default_factory=dict)
    allow_runtime_loading: bool = False

    def write(self) -> str:
        """As the environment variable holds them."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls) -> ServeOptions:
        """Those of this process; nothing where there are none."""
        return cls(**json.loads(os.environ.get(VARIABLE, "{}")))


class Server:
    """The adapters of one server.

    Args:
        engine: vLLM's `EngineClient`.
        models: its list of models.
        names: of the base.
    """

    def __init__(self, engine: Any, models: Any, names: list[str]) -> None:
        self.engine = engine
        self.models = models
        settings = Settings.of(engine.vllm_config)
        self.catalogue: Catalogue = Catalogue(engine.vllm_config, settings, frozenset(names))
        self.metrics: Prometheus = Prometheus()
        self.gate: Gate = Gate(engine, self.catalogue, self.metrics)
        self.lock: asyncio.Lock = asyncio.Lock()
        self.sweeping: set[asyncio.Task[None]] = set()

    async def load(self, name: str, source: str, *, revision: str | None = None, replace: bool = False) -> None:
        """Serve one more adapter, as a model of that name.

        Raises:
            ReftError: it cannot be served; nothing has changed then.
        """
        async with self.lock:
            if name in self.models.lora_requests and name not in self.catalogue.entries:
                raise ConfigError(f"{name!r} is a LoRA of this server", code="name", value=name, fix="rename it")
            entry = await asyncio.to_thread(self.catalogue.prepare, name, source, revision=revision, replace=replace)
            for refusal in await self.engine.collective_rpc("reft_load", args=(entry.key, entry.folder)):
                if refusal is not None:
                    await self._drop(entry)
                    raise AdapterLoadError(f"{name!r}: {refusal}", code="vllm.load", value=name)
            if entry.lora is not None:
                try:
                    await self.engine.add_lora(entry.lora)
                except Exception as error:  # whatever a worker raised: its type is lost between the processes
                    await self._drop(entry)
                    raise no_lora(name, error) from error
            self.catalogue.publish(entry)
            self.models.lora_requests[name] = ServedReft(
                lora_name=name, lora_int_id=1, lora_path=source, reft_name=name
            )
            self.metrics.loaded(len(self.catalogue.entries))
            self._sweep()

    async def unload(self, name: str) -> None:
        """Serve an adapter no more; requests that have begun end with it.

        Raises:
            ConfigError: no adapter of that name is served.
        """
        async with self.lock:
            self.catalogue.withdraw(name)
            self.models.lora_requests.pop(name, None)
            self.metrics.loaded(len(self.catalogue.entries))
            self._sweep()

    def _sweep(self) -> None:
        """Let workers drop what nobody uses any more, in the background, until nothing is left to drop."""
        if self.catalogue.leaving and not self.sweeping:
            task = asyncio.get_running_loop().create_task(self._swept())
            self.sweeping.add(task)
            task.add_done_callback(self.sweeping.discard)

    async def _swept(self) -> None:
        while self.catalogue.leaving:
            for entry in self.catalogue.gone(self.gate.unfinished):
                await self._drop(entry)
            if self.catalogue.leaving:
                await asyncio.sleep(0.5)

    async def _drop(self, entry: Entry) -> None:
        await self.engine.collective_rpc("reft_drop", args=(entry.key,))
        if entry.lora is not None:
            await self.engine.remove_lora(entry.lora.lora_int_id)


class ReftEndpoints:
    """vLLM's `EndpointPlugin`: it makes the server's adapters when the server starts."""

    name = "peft_reft"
    required_tasks: tuple[str, ...] = ("generate",)

    def __init__(self) -> None:
        self.options: ServeOptions = ServeOptions.read()

    def attach_router(self, app: Any) -> None:
        """The routes, where they are allowed."""
        if self.options.allow_runtime_loading:
            attach(app)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Stand before the engine and load the adapters; a refusal ends the start.

        Raises:
            ReftError: an adapter cannot be served.
        """
        names = list(args.served_model_name or [args.model])
        state.reft = server = Server(engine_client, state.openai_serving_models, names)
        for handler in WITH_BEAMS:
            _refuse_beams(getattr(state, handler, None))
        for name, source in self.options.adapters.items():
            await server.load(name, source)


def _refuse_beams(handler: Any) -> None:
    """Refuse beams with an adapter: vLLM searches by asking again with a longer prompt, whose end is elsewhere."""
    search = getattr(handler, "beam_search", None)
    if search is None:
        return

    def checked(*args: Any, lora_request: Any = None, **kwargs: Any) -> Any:
        if getattr(lora_request, "reft_name", None) is not None:
            raise ConfigError(
                f"beam search with the ReFT adapter {lora_request.reft_name!r}",
                code="vllm.request",
                value=lora_request.reft_name,
                rule="vLLM asks again with what it has generated as prompt",
                fix="leave use_beam_search out",
            )
        return search(*args, lora_request=lora_request, **kwargs)

    handler.beam_search = checked
