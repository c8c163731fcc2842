"""`Runtime`: what one model carries beside its weights, put together: state, way in, planning, operands."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from peft_reft.sites import Stack

from .arguments import arguments_of
from .boundary import BoundaryProvider, providers_for
from .operands import Operands
from .planning import Planner
from .ready import ReadyEdits
from .state import ATTRIBUTE, ModelState
from .way_in import make_entry, remove_entry

__all__ = ["Runtime", "runtime_of"]

Provider = TypeVar("Provider", bound=BoundaryProvider)


def runtime_of(model: nn.Module) -> Runtime | None:
    """The runtime that a model carries, or None."""
    return model.__dict__.get(ATTRIBUTE)


class Runtime:
    """Attached to the base model while it has ReFT adapters.

    Attributes:
        state: what is there, and what is active.
        providers: who is asked where a prompt ends.
        planner: a call → its frame.
        operands: what the edits of a frame need beside h.
        ready: the edits of a frame that are made in one step.
        entries: the modules through which calls come in.
        handles: of the hooks on the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.state: ModelState = ModelState(model)
        self.providers: list[BoundaryProvider] = providers_for(self.state)
        self.operands: Operands = Operands(self.state)
        self.planner: Planner = Planner(self.state, self.providers, self.operands)
        self.ready: ReadyEdits = ReadyEdits(self.operands)
        self.entries: list[nn.Module] = []
        self.handles: list[RemovableHandle] = []
        self._open(model)
        setattr(model, ATTRIBUTE, self)
        for provider in self.providers:
            provider.attach()

    def provider(self, kind: type[Provider]) -> Provider:
        """The provider of a class."""
        return next(provider for provider in self.providers if isinstance(provider, kind))

    def add_stack(self, stack: Stack) -> None:
        """Make a stack known, and the modules around it that take tokens entries for it."""
        if stack.path in self.state.stacks:
            return
        self.state.stacks[stack.path] = stack
        parts = stack.path.split(".")[:-1]
        for end in range(len(parts) + 1):
            module = self.state.model.get_submodule(".".join(parts[:end]))
            if not end or "input_ids" in arguments_of(module):
                self._open(module, stack.path)

    def keep(self, handle: RemovableHandle) -> None:
        """Let a hook go with the adapters."""
        self.handles.append(handle)

    def mode_changed(self) -> None:
        """Somebody called the model's `train` or `eval`."""
        for provider in self.providers:
            provider.mode_changed()

    def remove(self) -> None:
        """Take every hook and attribute off the model, and give its entries their own classes back."""
        for handle in self.handles:
            handle.remove()
        for provider in self.providers:
            provider.detach()
        for module in self.entries:
            remove_entry(module)
        self.state.model.__dict__.pop(ATTRIBUTE, None)

    def _open(self, module: nn.Module, *stacks: str) -> None:
        entry = make_entry(module, self.state.running, self.planner)
        entry.alone = module is not self.state.model and not _takes_both(module)
        if not any(known is module for known in self.entries):
            self.entries.append(module)
        entry.stacks.extend(stacks)


def _takes_both(module: nn.Module) -> bool:
    """Whether a module is called with the tokens of an encoder and of a decoder."""
    return any(name.startswith("decoder_input") for name in arguments_of(module))
