"""transformers' continuous batching: packed forwards on a paged cache, which name no request.

A manager runs the model in a thread of its own. Which request each token of a forward belongs to, how far that request
is and how long its prompt was, only the manager knows; so the model's `init_continuous_batching` keeps track of the
managers that it makes, and a request is resolved as a row of `generate` is (see `requests`).

Two habits of a manager would edit other tokens in silence, and are settled when it is made:

- Requests whose tokens begin alike share blocks of keys and values, though edits may depend on where a prompt ends.
- Graphs and compiled forwards replay one batch's edits for another.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_reft.hub_format.errors import ConfigError, LocationError, PositionError, ReftError
from peft_reft.hub_format.positions import All, First, Positions, PromptWindow, Special
from peft_reft.runtime.boundary import BoundaryProvider, Knowledge
from peft_reft.runtime.inputs import EXPLICIT, Explicit
from peft_reft.runtime.past import cache_of
from peft_reft.runtime.plan import StackPlan
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.state import ModelState
from peft_reft.runtime.views import AdapterView

from .generate import check_guidance, check_turns
from .records import edit_state
from .requests import Batch

__all__ = ["ContinuousBatching", "shared_reach"]

ENTRIES = ("init_continuous_batching", "generate_batch")


@dataclass
class _Known:
    """A manager, and the edits with which its shared blocks were computed."""

    manager: weakref.ref[Any]
    edits: object = None


@dataclass
class _Watch:
    """The managers made during one `generate_batch`."""

    made: list[Any] = field(default_factory=list)


class ContinuousBatching(BoundaryProvider):
    """The managers of one model."""

    def __init__(self, state: ModelState) -> None:
        super().__init__(state)
        self.known: list[_Known] = []
        self.watches: list[_Watch] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has no managers: they run the original."""
        return {"state": self.state, "known": [], "watches": []}

    def attach(self) -> None:
        """Put our entries before the model's own, on this instance."""
        model = self.state.model
        for name in ENTRIES:
            if callable(getattr(type(model), name, None)):
                setattr(model, name, getattr(self, name))

    def detach(self) -> None:
        """Take them off again."""
        for name in ENTRIES:
            self.state.model.__dict__.pop(name, None)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `init_continuous_batching`, for a manager whose requests are known.

        Raises:
            ConfigError: the manager would replay graphs or run a compiled forward, or shares blocks that it must not.
        """
        model = self.state.model
        own = type(model).init_continuous_batching  # type: ignore[attr-defined]
        call = inspect.signature(own).bind(model, *args, **kwargs)
        check_guidance(self.state, call.arguments)
        check_turns(self.state)
        attention = getattr(model.config, "_attn_implementation", None)
        if (settings := self._settings(call.arguments)) is not None:
            call.arguments["continuous_batching_config"] = settings
        manager = own(*call.args, **call.kwargs)
        try:
            self._check(manager)
        except ReftError:
            if getattr(model.config, "_attn_implementation", None) != attention:
                model.set_attn_implementation(attention)  # type: ignore[operator]
            raise
        self._keep(manager)
        return manager

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate_batch`; a refusal in the manager's thread is raised here.

        Raises:
            LocationError: explicit positions, which the model's own method would ignore.
        """
        _refuse_explicit(kwargs)
        watch = _Watch()
        self.watches.append(watch)
        try:
            outputs = type(self.state.model).generate_batch(  # type: ignore[attr-defined]
                self.state.model, *args, **kwargs
            )
        finally:
            self.watches.remove(watch)
        for manager in watch.made:
            if isinstance(error := manager.background_thread_status.fatal_error, ReftError):
                raise error
        return outputs

    def knowledge(self, call: Mapping[str, Any], explicit: Explicit) -> Knowledge | None:
        """The requests that a forward of a known manager computes."""
        batch = self.batch_of(call) if self.known else None
        return None if batch is None else _Paged(batch)

    def batch_of(self, call: Mapping[str, Any]) -> Batch | None:
        """The requests that a bound call of the model computes; None where it is no call of a known manager.

        Raises:
            PositionError: a shared block was computed with other edits.
        """
        cache = cache_of(call)
        if cache is None or not self.known:
            return None
        for entry in self.known:
            processor = getattr(entry.manager(), "batch_processor", None)
            if processor is not None and processor.cache is cache:
                batch = Batch.of(processor, call)
                if batch is not None and getattr(cache, "use_prefix_sharing", False):
                    self._check_sharing(entry, cache, batch)
                return batch
        return None

    def _settings(self, arguments: Mapping[str, Any]) -> Any:
        """The settings for a new manager: no graphs, and no shared blocks where edits would differ."""
        given = arguments.get("continuous_batching_config")
        if given is None:
            held = arguments.get("generation_config") or getattr(self.state.model, "generation_config", None)
            given = getattr(held, "continuous_batching_config", None)
        if given is None:
            from transformers import ContinuousBatchingConfig

            given = ContinuousBatchingConfig()
        if not self.state.views:
            return given
        settings = copy.deepcopy(given)
        _refuse_replay(settings)
        settings.use_cuda_graph = (False, False)
        if self._reach() is None:
            settings.allow_block_sharing = False
        return settings

    def _check(self, manager: Any) -> None:
        """A manager kept from an earlier session may have been made for other adapters."""
        settings = manager.continuous_batching_config
        if self.state.views:
            _refuse_replay(settings)
        if settings.allow_block_sharing and self._reach() is None:
            raise _stale("the manager kept from before shares blocks, and the active edits depend on the prompt's end")

    def _keep(self, manager: Any) -> None:
        self.known = [entry for entry in self.known if entry.manager() is not None]
        for watch in self.watches:
            watch.made.append(manager)
        if not any(entry.manager() is manager for entry in self.known):
            self.known.append(_Known(weakref.ref(manager)))
            manager.add_request = _without_explicit(manager.add_request)

    def _check_sharing(self, entry: _Known, cache: Any, batch: Batch) -> None:
        edits, reach = edit_state(self.state), self._reach()
        if entry.edits is None:
            entry.edits = edits
        if reach is None or entry.edits != edits:
            raise _stale("the active edits changed while requests share blocks of the cache")
        if any(request.prompt < reach for request in batch.requests):
            # its next tokens are generated where a longer prompt with the same tokens is edited: nothing of it may be
            # shared, and nothing of others by it once it is put back into the queue with what it generated
            cache.use_prefix_sharing = cache.allow_block_sharing = False

    def _reach(self) -> int | None:
        """`shared_reach` of everything that edits now."""
        reaches = []
        for layer in self.state.layers.values():
            for key in layer.active_keys():
                if layer.unit(key).across_tokens:
                    return None
        for name in self.state.active():
            for group in self.state.views[name].groups:
                reaches.append(None if group.turns == "each" else shared_reach(group.positions))
        return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)


class _Paged(Knowledge):
    """Of a packed forward: which request each token belongs to."""

    plans_itself = True

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def plan(self, role: str, views: Sequence[AdapterView]) -> StackPlan | None:
        """Each request is resolved as a row of `generate` is."""
        return self.batch.plan(views, Situation(role=role))


def shared_reach(positions: Positions) -> int | None:
    """How long two prompts must be at least, so that tokens which both begin with are edited alike in both.

    None where no length suffices: a term counts from the prompt's end, or from where generation starts.

    >>> from peft_reft.hub_format.positions import parse_positions
    >>> [shared_reach(parse_positions(text)) for text in ("f4", "all-f2", "p[1:6]", "l1", "generated")]
    [4, 2, 6, None, None]
    """
    reach = 0
    for term in (*positions.terms, *positions.exclusions):
        if isinstance(term, First):
            reach = max(reach, term.count)
        elif isinstance(term, PromptWindow) and (term.start or 0) >= 0 and (term.stop or -1) >= 0:
            reach = max(reach, term.stop or 0)
        elif not isinstance(term, (All, Special)):
            return None
    return reach


def _refuse_replay(settings: Any) -> None:
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


def _refuse_explicit(kwargs: Mapping[str, Any]) -> None:
    for name in EXPLICIT:
        if kwargs.get(name) is not None:
            raise LocationError(
                f"{name} is not supported by continuous batching",
                code="positions.continuous",
                value=name,
                rule="a request is its tokens alone, all of them prompt",
                fix="leave it out, or use generate",
            )


def _without_explicit(add_request: Callable[..., Any]) -> Callable[..., Any]:
    def add(*args: Any, **kwargs: Any) -> Any:
        _refuse_explicit(kwargs)
        return add_request(*args, **kwargs)

    return add


def _stale(what: str) -> PositionError:
    return PositionError(
        what,
        code="positions.shared_blocks",
        rule="a block of keys and values holds the edits with which it was computed",
        fix="call destroy_cached_continuous_batching_manager() and make a new manager, or pass "
        "ContinuousBatchingConfig(allow_block_sharing=False)",
    )
