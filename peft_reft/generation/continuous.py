"""transformers' continuous batching: packed forwards on a paged cache, which name no request.

A manager runs the model in a thread of its own. Which request each token of a forward belongs to, how far that request
is and how long its prompt was, only the manager knows; so the model's `init_continuous_batching` keeps track of the
managers that it makes, and a request is resolved as a row of `generate` is (see `requests`). A request may name its
adapters (see `asked`, `named_plan`, `block_salts`); without, it is edited by those that are active.

Two habits of a manager would edit other tokens in silence, and are settled when it is made:

- Requests whose tokens begin alike share blocks of keys and values, though edits may depend on where a prompt ends.
- Graphs and compiled forwards replay one batch's edits for another.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_reft.hub_format.errors import ConfigError, PositionError, ReftError
from peft_reft.runtime.boundary import BoundaryProvider, Knowledge
from peft_reft.runtime.inputs import Explicit
from peft_reft.runtime.past import cache_of
from peft_reft.runtime.plan import StackPlan
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.state import ModelState
from peft_reft.runtime.views import AdapterView

from .admission import adding, adding_several, refuse_explicit, refuse_replay
from .asked import AskedRequests, named_prompts
from .block_salts import BlockSalts, shared_reach
from .generate import check_guidance, check_turns
from .named_plan import editing, plan_named
from .records import edit_state
from .requests import Batch

__all__ = ["ContinuousBatching", "shared_reach"]

ENTRIES = ("init_continuous_batching", "generate_batch")


@dataclass
class _Known:
    """A manager, its requests that name adapters, and the edits with which the blocks of the others were computed."""

    manager: weakref.ref[Any]
    asked: AskedRequests
    salts: BlockSalts
    edits: object = None

    def named(self, request: str) -> tuple[str, ...] | None:
        """The adapters that a request names."""
        asked = self.asked.of(request)
        return None if asked is None else asked.names


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

    def generate_batch(self, inputs: Any, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
        """The model's own `generate_batch`; a refusal in the manager's thread is raised here.

        Args:
            inputs: token ids of every request.
            args: of the model's own method.
            adapter_names: for every request an adapter's name, `"__base__"`, or a tuple of names whose edits add;
                without, all are edited by the active adapters.
            kwargs: of the model's own method.

        Raises:
            LocationError: explicit positions, which the model's own method would ignore.
            ConfigError: an adapter that a request cannot name.
        """
        refuse_explicit(kwargs)
        if adapter_names is not None:
            inputs = named_prompts(inputs, adapter_names)
            AskedRequests(self.state).check(adapter_names)
        watch = _Watch()
        self.watches.append(watch)
        try:
            outputs = type(self.state.model).generate_batch(  # type: ignore[attr-defined]
                self.state.model, inputs, *args, **kwargs
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
        if batch is None:
            return None
        active = self.state.active()
        return _Paged(batch, active, editing(batch, self.state.views, active))

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
                entry.salts.attach(cache)
                entry.asked.forget(entry.manager())
                batch = Batch.of(processor, call, entry.named)
                if batch is not None and getattr(cache, "use_prefix_sharing", False):
                    self._check_sharing(entry, cache, batch)
                return batch
        return None

    def check_unused(self, name: str) -> None:
        """Refuse to delete an adapter that a request names which has not ended.

        Raises:
            ConfigError: a running manager has one.
        """
        for entry in self.known:
            manager = entry.manager()
            if manager is not None and manager.is_running() and entry.asked.uses(name, manager):
                raise ConfigError(
                    f"adapter {name!r} is named by requests of continuous batching that run",
                    code="continuous.in_use",
                    value=name,
                    rule="a request ends with the adapters that it began with",
                    fix="wait for their results, or cancel them with cancel_request",
                )

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
        refuse_replay(settings)
        settings.use_cuda_graph = (False, False)
        if self._reach() is None:
            settings.allow_block_sharing = False
        return settings

    def _check(self, manager: Any) -> None:
        """A manager kept from an earlier session may have been made for other adapters."""
        settings = manager.continuous_batching_config
        if self.state.views:
            refuse_replay(settings)
        if settings.allow_block_sharing and self._reach() is None:
            raise _stale("the manager kept from before shares blocks, and the active edits depend on the prompt's end")

    def _keep(self, manager: Any) -> None:
        self.known = [entry for entry in self.known if entry.manager() is not None]
        for watch in self.watches:
            watch.made.append(manager)
        if not any(entry.manager() is manager for entry in self.known):
            asked = AskedRequests(self.state)
            self.known.append(_Known(weakref.ref(manager), asked, BlockSalts(self.state, asked)))
            manager.add_request = adding(manager, asked)
            manager.add_requests = adding_several(manager, asked)

    def _check_sharing(self, entry: _Known, cache: Any, batch: Batch) -> None:
        others = [request for request in batch.requests if request.names is None]
        if not others:
            return
        edits, reach = edit_state(self.state), self._reach()
        if entry.edits is None:
            entry.edits = edits
        if reach is None or entry.edits != edits:
            raise _stale("the active edits changed while requests share blocks of the cache")
        if any(request.prompt < reach for request in others):
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

    def __init__(self, batch: Batch, active: Sequence[str], named: tuple[str, ...] | None) -> None:
        self.batch = batch
        self.active = active
        self.adapters = named

    def plan(self, role: str, views: Sequence[AdapterView]) -> StackPlan | None:
        """Each request is resolved as a row of `generate` is."""
        situation = Situation(role=role)
        if self.adapters is None:
            return self.batch.plan(views, situation)
        return plan_named(self.batch, views, self.active, situation)


def _stale(what: str) -> PositionError:
    return PositionError(
        what,
        code="positions.shared_blocks",
        rule="a block of keys and values holds the edits with which it was computed",
        fix="call destroy_cached_continuous_batching_manager() and make a new manager, or pass "
        "ContinuousBatchingConfig(allow_block_sharing=False)",
    )
