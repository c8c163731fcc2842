"""The one way into a model with adapters: `forward` of it, and of every module inside it that takes tokens.

`model(...)`, `model.forward(...)` called by its name, a backbone or an encoder alone: all of them look `forward` up on
the module. There it is a descriptor of a class made for this one instance, as FSDP2 does it
(torch/distributed/fsdp/_fully_shard): whoever comes first opens the frame, the same closes it in a `finally`. What
others put in the place of `forward` on the instance, before or after (TRL's fused head, accelerate, Liger), is kept
and is called inside of the frame. `remove_entry` gives the module its own class back.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Protocol

from torch import nn

from .calls import Call, shows_tokens
from .compiling import beside_graphs, python_only
from .frames import Frame, Running
from .inputs import Explicit
from .past import mark_cache

__all__ = ["Entry", "FramePlanner", "make_entry", "remove_entry"]

ENTRY = "_reft_entry"
_FRAMED = "_reft_forward"
"""The class's own forward inside a frame."""
_REPLACED = "_reft_replaced"
"""What somebody has put in the place of an instance's forward."""
_BOUND = "_reft_bound"
"""The same, inside a frame."""
_IDLE = Frame({}, {})
"""The frame of a forward that edits nothing."""
_NUMBERS = itertools.count(1)


class FramePlanner(Protocol):
    """Makes the frame of a forward."""

    def frame(
        self,
        paths: list[str],
        call: Mapping[str, Any],
        explicit: Explicit,
        module: nn.Module,
        *,
        alone: bool,
        compiled: bool,
    ) -> Frame:
        """The frame for a call of `module`, in which the stacks `paths` run; see `Planner.frame`."""


class Entry:
    """A module through which calls come in.

    Args:
        running: what runs of the model.
        planner: of the model.

    Attributes:
        stacks: paths of the stacks that run in its forward.
        alone: whether it is one stack of an encoder-decoder, whose tokens have plain names.
        number: of its own.
    """

    def __init__(self, running: Running, planner: FramePlanner) -> None:
        self.running = running
        self.planner = planner
        self.stacks: list[str] = []
        self.alone = False
        self.number: int = next(_NUMBERS)

    @beside_graphs
    def call(self, level: int, arguments: dict[str, Any], explicit: Explicit) -> Call:
        """The call that comes in here."""
        running, labels = self.running, arguments.get("labels")
        return Call([(self.number, level)], arguments, explicit, labels, running.session, running.rows)

    @beside_graphs
    def frame(self, module: nn.Module, call: Call) -> Frame:
        """The frame of a call."""
        if call.session is not None and not call.explicit and call.session.edits_nothing(call.arguments):
            return _IDLE
        # what stands in the place of forward may bring the parameters yet
        compiled = module._compiled_call_impl is not None and _REPLACED not in module.__dict__
        return self.planner.frame(
            self.stacks, call.arguments, call.explicit, module, alone=self.alone, compiled=compiled
        )


class _Forward:
    """The attribute `forward` of an entry.

    Args:
        original: the module's own class. Its `forward` is looked up at every call: Liger replaces it there.
    """

    def __init__(self, original: type[nn.Module]) -> None:
        self.original = original
        self.own: Any = original.forward

    @beside_graphs
    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        own = self.original.forward
        if module is None:
            return own
        if "forward" in module.__dict__:  # put there past `setattr`
            self.__set__(module, module.__dict__.pop("forward"))
        if _BOUND in module.__dict__:
            return module.__dict__[_BOUND]
        if own is not self.own:
            setattr(_CLASSES[self.original], _FRAMED, _framed(own))
            self.own = own
        return getattr(module, _FRAMED)

    @beside_graphs
    def __set__(self, module: nn.Module, value: Any) -> None:
        bound = isinstance(value, MethodType) and value.__self__ is module
        if bound and value.__func__ is getattr(type(module), _FRAMED):  # accelerate puts back what it found
            module.__dict__.pop(_REPLACED, None)
            module.__dict__.pop(_BOUND, None)
            return
        module.__dict__[_REPLACED] = value
        module.__dict__[_BOUND] = MethodType(
            _framed(value.__func__ if bound else _with_self(value), level=next(_NUMBERS)), module
        )

    def __delete__(self, module: nn.Module) -> None:
        module.__dict__.pop(_BOUND, None)
        if module.__dict__.pop(_REPLACED, None) is None:
            raise AttributeError("forward")


def _framed(own: Callable[..., Any], *, level: int = 0) -> Callable[..., Any]:
    """A class's forward inside a frame, or, at a level of its own, one that was put in its place."""
    names = _positional(own)[1:]

    @functools.wraps(own)
    @python_only
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        entry: Entry | None = self.__dict__.get(ENTRY)
        if entry is None:
            return own(self, *args, **kwargs)
        running = entry.running
        frame, outer, here = running.frame, running.call, (entry.number, level)
        leaves = outer is not None and outer.is_left(here, running)
        explicit, inner = Explicit.take(kwargs)
        if frame is not None and not leaves:
            if outer is None:
                return own(self, *args, **inner)
            depth = len(outer.inside)
            try:
                outer.inside.append(here)
                if entry.number == outer.inside[0][0] and outer.updated(_named(names, args, inner), explicit):
                    running.frame = entry.frame(self, outer)
                return own(self, *args, **inner)
            finally:
                del outer.inside[depth:]
        arguments = _named(names, args, inner)
        if level and not shows_tokens(arguments):
            return own(self, *args, **kwargs)  # it takes a batch of its own kind, which our next way in will see
        session, rows = running.session, running.rows
        first = rows is not None and outer is None and session is None
        apart = first and not rows.take((*args, *kwargs.values()))
        try:
            if apart:
                running.rows = None
            elif outer is not None:
                running.session = None if session is outer.session else session
                running.rows = None if rows is outer.rows else rows
            running.call = entry.call(level, arguments, explicit)
            running.frame = entry.frame(self, running.call)
            output = own(self, *args, **inner)
            if running.frame.counts_from_end:
                mark_cache(output)
            penalties = running.frame.penalties
            return output if penalties is None else penalties.added(output)
        finally:
            running.frame, running.call = frame, outer
            if outer is not None or apart:
                running.session, running.rows = session, rows
            elif first:
                running.rows = None  # said of this call: an interrupt may strike before it is taken back

    return forward


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs


def _with_self(replaced: Callable[..., Any]) -> Callable[..., Any]:
    """A bound forward as a function of the module too, of the same signature."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return replaced(*args, **kwargs)

    functools.update_wrapper(forward, replaced)
    signature = inspect.signature(replaced)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    rest = [
        parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        else parameter
        for parameter in signature.parameters.values()
        if parameter.name != "self"  # a wrapper that copied our own signature
    ]
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD), *rest]
    )
    return forward


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that may be given by their place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, value in inspect.signature(function).parameters.items() if value.kind in kinds)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""A module's own class → the one of its kind that are entries."""


def make_entry(module: nn.Module, running: Running, planner: FramePlanner) -> Entry:
    """Make a module a way in; the entry that it is already, if it is one."""
    known: Entry | None = module.__dict__.get(ENTRY)
    if known is not None:
        return known
    entry = Entry(running, planner)
    module.__dict__[ENTRY] = entry
    replaced = module.__dict__.pop("forward", None)
    module.__class__ = _entry_class(type(module))
    if replaced is not None:
        module.forward = replaced
    return entry


def remove_entry(module: nn.Module) -> None:
    """Undo `make_entry`. Under a class that somebody has put over it, such as FSDP2's, forward is let through."""
    module.__dict__.pop(ENTRY, None)
    descriptor = type(module).__dict__.get("forward")
    if isinstance(descriptor, _Forward):
        replaced = module.__dict__.pop(_REPLACED, None)
        module.__dict__.pop(_BOUND, None)
        module.__class__ = descriptor.original
        if replaced is not None:
            module.forward = replaced


def _entry_class(original: type[nn.Module]) -> type[nn.Module]:
    if isinstance(original.__dict__.get("forward"), _Forward):
        return original
    if original not in _CLASSES:
        namespace = {
            "__doc__": original.__doc__,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__reduce_ex__": _reduced,
            _FRAMED: _framed(original.forward),
            "forward": _Forward(original),
        }
        metaclass: Any = type(original)
        _CLASSES[original] = metaclass(original.__name__, (original,), namespace)
    return _CLASSES[original]


def _reduced(module: nn.Module, protocol: Any) -> Any:
    """A copy, or a pickle, names the module's own class: the other one is found in no module."""
    made = next(cls for cls in type(module).__mro__ if isinstance(cls.__dict__.get("forward"), _Forward))
    original = made.__dict__["forward"].original
    function, arguments, *rest = original.__reduce_ex__(module, protocol)
    if rest and isinstance(rest[0], dict):
        rest[0] = dict(rest[0])
        rest[0].pop(_BOUND, None)
        if (replaced := rest[0].pop(_REPLACED, None)) is not None:
            rest[0]["forward"] = replaced  # as on a module that is no entry; taken over at the next call
    return (_remade, (original, function, *(original if item is made else item for item in arguments)), *rest)


def _remade(original: type[nn.Module], function: Callable[..., Any], *arguments: Any) -> nn.Module:
    module: nn.Module = function(*arguments)
    module.__class__ = _entry_class(original)
    return module
