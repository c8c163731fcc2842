"""The gate through which every request enters an engine: a name becomes an adapter, or the request is refused.

It stands before the engine's own `InputProcessor.process_inputs`, which the offline classes, the server and its every
endpoint go through, and before `OutputProcessor.add_request`, which nothing goes around.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm.exceptions import VLLMClientError

from peft_reft.hub_format.errors import ConfigError, ReftError

from .catalogue import Catalogue, Entry
from .metrics import Metrics
from .salts import salt_for, user_salt
from .tracking import EXTRA

__all__ = ["Gate", "RequestError"]


class RequestError(ConfigError, VLLMClientError):  # type: ignore[misc]  # vLLM's types are not followed
    """A request that is refused, in a way that the server answers with 400 and the engine survives."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Refusals from inside become the request's."""
    try:
        yield
    except ReftError as error:
        raise RequestError(str(error), code=error.code, value=error.value) from error


class Gate:
    """Of one engine: an `LLMEngine` or an `AsyncLLM`.

    Args:
        engine: to stand before; its two processors are changed on the instance.
        catalogue: of the adapters that it serves.
        metrics: to count with.
    """

    def __init__(self, engine: Any, catalogue: Catalogue, metrics: Metrics) -> None:
        self.catalogue = catalogue
        self.metrics = metrics
        self.outputs: Any = engine.output_processor
        outputs = self.outputs
        inputs = engine.input_processor
        inputs.process_inputs = partial(self._process, inputs.process_inputs)
        inputs.process_inputs_async = partial(self._process_async, inputs.process_inputs_async)
        outputs.add_request = partial(self._enter, outputs.add_request)

    def unfinished(self, request: str) -> bool:
        """Whether a request, by its id inside the engine, has not ended."""
        return request in self.outputs.request_states

    def _process(self, process: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        entry, params = self._admit(params, kwargs)
        return self._admitted(entry, process(request_id, prompt, params, *args, **kwargs))

    async def _process_async(
        self, process: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        entry, params = self._admit(params, kwargs)
        return self._admitted(entry, await process(request_id, prompt, params, *args, **kwargs))

    def _admit(self, params: Any, kwargs: dict[str, Any]) -> tuple[Entry | None, Any]:
        """The adapter that a request names, and the request's own parameters."""
        with _refusing():
            entry = self._named(params, kwargs)
            return entry, params if entry is None else self._checked(entry, params, kwargs)

    def _named(self, params: Any, kwargs: dict[str, Any]) -> Entry | None:
        """The adapter that a request names, by `extra_args` or as the server does, by `lora_request`."""
        named = (getattr(params, "extra_args", None) or {}).get(EXTRA)
        model = getattr(kwargs.get("lora_request"), "reft_name", None)
        served = None
        if model is not None:
            kwargs["lora_request"] = None
            served = self.catalogue.entry(model)
            if named is not None and named != served.name:
                raise ConfigError(
                    f"the request names two adapters, {served.name!r} and {str(named)[:60]!r}",
                    code="vllm.request",
                    value=named,
                    rule="a request has one ReFT",
                )
        elif named is not None:
            served = self.catalogue.entry(named)
        if served is not None and served.lora is not None:
            if kwargs.get("lora_request") is not None:
                raise ConfigError(
                    f"the request has a LoRA of its own beside the bundle {served.name!r}",
                    code="vllm.request",
                    value=served.name,
                    rule="a bundle brings its LoRA",
                    fix="leave lora_request out",
                )
            kwargs["lora_request"] = served.lora
        return served

    def _checked(self, entry: Entry, params: Any, kwargs: dict[str, Any]) -> Any:
        """Parameters of the request's own, after the refusal of what an edit has no meaning for."""
        if not hasattr(params, "max_tokens"):
            raise _refuse(entry, "pooling", "an edit is made while a model generates")
        if kwargs.get("resumable"):
            raise _refuse(entry, "a prompt that goes on growing", "positions are counted in a whole prompt")
        params = copy.copy(params)
        params.extra_args = {**(params.extra_args or {}), EXTRA: entry.name}
        return params

    def _admitted(self, entry: Entry | None, request: Any) -> Any:
        """The engine's request, with the adapter's key in place of its name and the salt of its blocks."""
        if entry is None:
            request.cache_salt = user_salt(request.cache_salt)
            return request
        ids = request.prompt_token_ids
        with _refusing():
            if ids is None or request.prompt_embeds is not None or request.mm_features:
                raise _refuse(entry, "a prompt that is more than tokens", "positions are counted in tokens")
        parameters = request.sampling_params
        parameters.extra_args = {**(parameters.extra_args or {}), EXTRA: entry.key}
        request.cache_salt = salt_for(entry.key, entry.reach, len(ids), request.cache_salt)
        self.metrics.admitted(entry.name, len(ids))
        return request

    def _enter(self, add: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Let a request into the engine, if what it names is a key that the workers hold."""
        key = (getattr(request.sampling_params, "extra_args", None) or {}).get(EXTRA)
        if key is not None:
            if not isinstance(key, str) or key not in self.catalogue.requests:
                raise RequestError(
                    f"a request names the adapter {str(key)[:60]!r} in a way that nobody has checked",
                    code="vllm.request",
                    value=key,
                    rule="adapters are named by SamplingParams.extra_args of a prompt, not of a finished request",
                    fix="pass the prompt itself",
                )
            self.catalogue.note(key, request.request_id, self.unfinished)
        return add(request, *args, **kwargs)


def _refuse(entry: Entry, what: str, rule: str) -> ReftError:
    return ConfigError(
        f"{what} with the ReFT adapter {entry.name!r}", code="vllm.request", value=entry.name, rule=rule
    )
