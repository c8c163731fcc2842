"""Requests of continuous batching that name their adapters: admitted or refused, and known until they have ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import index
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper

from peft_reft.adapters.per_row import split_rows
from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.runtime.row_choice import BASE
from peft_reft.runtime.state import ModelState

__all__ = ["Asked", "AskedRequests", "Prompt", "check_prompt", "named_prompts"]

CHILD = "__child#"
"""How transformers names the further sequences of one request."""
KEPT = 256
"""So many records may stand before those of ended requests are looked for."""


class Prompt(list[int]):
    """Token ids that carry what their request asks for through methods of transformers that know nothing of it."""

    def __init__(self, ids: Iterable[int], adapter_names: Any) -> None:
        super().__init__(ids)
        self.adapter_names: Any = adapter_names


def named_prompts(inputs: Sequence[Sequence[int]], adapter_names: Any) -> list[Prompt]:
    """The prompts of several requests, each with its adapters.

    Args:
        inputs: token ids of each.
        adapter_names: for each an adapter's name, `"__base__"`, or a tuple of names whose edits add.

    Raises:
        ConfigError: another number of names than of prompts, or a prompt that is no list of token ids.
    """
    if not hasattr(inputs, "__len__"):
        raise ConfigError(
            f"inputs is {shown(inputs)}",
            code="continuous.prompt",
            value=inputs,
            rule="it is a list of requests, each a list of token ids",
        )
    if isinstance(adapter_names, str) or not isinstance(adapter_names, Sequence) or len(adapter_names) != len(inputs):
        raise ConfigError(
            f"adapter_names is {shown(adapter_names)}",
            code="continuous.names",
            value=adapter_names,
            rule=f"it is a list with one entry for each of the {len(inputs)} requests, {BASE!r} for none",
        )
    for ids in inputs:
        check_prompt(ids)
    return [Prompt(ids, names) for ids, names in zip(inputs, adapter_names, strict=True)]


def check_prompt(ids: Any) -> None:
    """Refuse a request that is no list of token ids; transformers would cut numbers, or take another's tokens for it.

    Raises:
        ConfigError: no list of whole numbers, or an empty one.
    """
    try:
        whole = len(ids) > 0 and all(index(token) is not None for token in ids)
    except (TypeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise ConfigError(
            f"a request's prompt is {shown(ids)}",
            code="continuous.prompt",
            value=ids,
            rule="it is a list of token ids, whole numbers, one at least",
            fix='e.g. tokenizer(text)["input_ids"]',
        )


@dataclass(frozen=True)
class Asked:
    """What a request was asked with.

    Attributes:
        names: of the adapters that edit it; None: of those that are active.
        prompt: tokens of its prompt.
    """

    names: tuple[str, ...] | None
    prompt: int


@dataclass
class AskedRequests:
    """The requests of one manager that name their adapters, by their ids.

    A record outlives its request by a while: transformers says nowhere that one has ended, so they are looked for
    when there are many.
    """

    state: ModelState
    records: dict[str, Asked] = field(default_factory=dict)
    arriving: set[str] = field(default_factory=set)
    numbers: Any = field(default_factory=count)
    lock: Any = field(default_factory=threading.Lock)

    def add(self, own: Callable[..., Any], ids: Sequence[int], request: str | None, names: Any) -> Any:
        """Admit a request and hand it on.

        Args:
            own: takes the request's id and hands it to the manager; returns the id, or None where it is dropped.
            ids: of its prompt.
            request: its id; None: one is made, if it names adapters.
            names: see `named_prompts`; None: it is edited by what is active.

        Raises:
            ConfigError: an adapter that is not there, or whose edits a packed forward cannot give to one request; a
                prompt or an id that is none.
        """
        check_prompt(ids)
        if not isinstance(request, (str, type(None))):
            raise ConfigError(f"request_id is {shown(request)}", value=request, rule="it is a str, or None")
        asked = Asked(None if names is None else self._admitted(names), len(ids))
        if request is None:
            if asked.names is None:
                return own(None)
            request = next(name for number in self.numbers if (name := f"reft_{number}") not in self.records)
        with self.lock:
            self.records[request] = asked
            self.arriving.add(request)
        taken = None
        try:
            taken = own(request)
        finally:
            with self.lock:
                self.arriving.discard(request)
                if taken is None:
                    self.records.pop(request, None)
        return taken

    def check(self, adapter_names: Iterable[Any]) -> None:
        """Refuse names that cannot be given, before any of the requests is sent.

        Raises:
            ConfigError: see `add`.
        """
        for names in adapter_names:
            self._admitted(names)

    def check_id(self, request: Any, names: Any, manager: Any) -> None:
        """Refuse the id of a request that has not ended and names other adapters: both would be edited by the last.

        Raises:
            ConfigError: there is one.
        """
        held = self.records.get(request) if isinstance(request, str) else None
        if held is None or request not in self._living(manager):
            return
        if held.names != (None if names is None else self._admitted(names)):
            raise ConfigError(
                f"a request with the id {shown(request)} has not ended, and names other adapters",
                code="continuous.id",
                value=request,
                rule="a request is known by its id, and edited by its own adapters until it ends",
                fix="leave request_id out, or choose another",
            )

    def uses(self, name: str, manager: Any) -> bool:
        """Whether a request that has not ended names an adapter."""
        return any(name in (asked.names or ()) for asked in self._living(manager).values())

    def of(self, request: str) -> Asked | None:
        """What a request, or the one that it is a further sequence of, was asked with; None: nobody has said."""
        found = self.records.get(request)
        return found if found is not None else self.records.get(request.rpartition(CHILD)[0])

    def forget(self, manager: Any) -> None:
        """Drop the records of ended requests, where there are many; called in the manager's own thread."""
        if len(self.records) < KEPT:
            return
        with self.lock:
            self.records = self._living(manager)

    def _living(self, manager: Any) -> dict[str, Asked]:
        alive = set(self.arriving)  # looked at first: what leaves it stands in the queue by then
        with manager.input_queue.mutex:
            alive |= {waiting.request_id for waiting in manager.input_queue.queue}
        scheduler = getattr(manager.batch_processor, "scheduler", None)
        if scheduler is not None:
            alive |= {*list(scheduler.active_requests), *list(scheduler.waiting_requests)}
        alive |= {request.rpartition(CHILD)[0] for request in alive}
        return {request: asked for request, asked in list(self.records.items()) if request in alive}

    def _admitted(self, names: Any) -> tuple[str, ...]:
        if (getattr(self.state.model, "_tp_size", None) or 1) > 1:
            raise _refuse(names, "the other processes of tensor parallelism are not told of a request's adapters")
        (chosen,) = split_rows([names], self.state.views, training=False)
        for name in chosen:
            self._check(name)
        return chosen

    def _check(self, name: str) -> None:
        view = self.state.views[name]
        if view.needs_turns:
            raise _refuse(name, "turns='each': a request is its tokens alone, and does not say where turns end")
        for layer in self.state.layers.values():
            for number in layer.units.get(name, ()):
                if layer.unit((name, number)).across_tokens:
                    raise _refuse(name, "its edit depends on other tokens, which may come in another forward")
        for module in self.state.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters:
                raise _refuse(name, "it saves modules in full, which a packed forward has one of for all requests")


def _refuse(names: object, rule: str) -> ConfigError:
    return ConfigError(
        f"the adapter {names!r} for one request of continuous batching",
        code="continuous.names",
        value=names,
        rule=rule,
        fix="make it active with set_adapter for all requests, or use generate with adapter_names",
    )
