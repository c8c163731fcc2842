"""Positions inside a checkpointed block: they travel with the call, so that recomputation sees the same ones.

transformers checkpoints a block's `forward`, which leaves hooks of the block outside and those of its parts
(attention, feed-forward) inside: they run again in the backward pass, when the model's forward is over
(modeling_layers.py, `GradientCheckpointingLayer`). Its versions before 5.20 or so checkpoint the block's `__call__`,
hooks of the block included. So the function that is checkpointed carries its frame along. R is computed from its raw
parameter in there: a tensor of another region's graph must not be used across regions that are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_layers import GradientCheckpointingLayer

from peft_reft.runtime import Runtime
from peft_reft.runtime.boundary import BoundaryProvider
from peft_reft.runtime.frames import Running
from peft_reft.runtime.state import ModelState

__all__ = ["FrameCarrier", "Recomputation", "carry_frames", "checkpoint_flag", "recomputes_hooks"]

_FLAGS = ("gradient_checkpointing", "activation_checkpointing")
_FUNCTIONS = ("_gradient_checkpointing_func", "_activation_checkpointing_func")
"""Names that a block has for whether, and by what, it is checkpointed; transformers 6 goes over to the second ones."""


def carry_frames(runtime: Runtime, path: str, stack: str) -> None:
    """Let the positions of a site inside a block travel with the block's recomputation.

    Args:
        runtime: of the model.
        path: of the site.
        stack: path of its stack.
    """
    inner = path.removeprefix(f"{stack}.").split(".")
    if len(inner) < 2 and not recomputes_hooks():
        return  # the block itself: its hooks lie outside of what is recomputed
    runtime.provider(Recomputation).carry(runtime.state.model.get_submodule(f"{stack}.{inner[0]}"))


def checkpoint_flag(module: nn.Module) -> str | None:
    """The name of the attribute that says that a module is checkpointed; None where it is not."""
    return next((name for name in _FLAGS if getattr(module, name, False) is True), None)


class FrameCarrier:
    """A pre-hook of one block; `remove` takes it and what it set off the block again."""

    def __init__(self, running: Running, block: nn.Module) -> None:
        self.running = running
        self.block = block
        self.handle: RemovableHandle = block.register_forward_pre_hook(self)

    def __call__(self, block: nn.Module, args: Any) -> None:
        """Called when the block runs."""
        self.wrap()

    def wrap(self) -> None:
        """Wrap the function by which the block is about to be checkpointed, unless it is wrapped already."""
        if checkpoint_flag(self.block) is None or not self.block.training:
            return
        for name in _FUNCTIONS:
            checkpoint = getattr(self.block, name, None)
            if checkpoint is not None and not isinstance(checkpoint, _Carrying):
                setattr(self.block, name, _Carrying(self.running, checkpoint))

    def remove(self) -> None:
        """Leave the block as it was."""
        self.handle.remove()
        for name in _FUNCTIONS:
            checkpoint = getattr(self.block, name, None)
            if isinstance(checkpoint, _Carrying):
                setattr(self.block, name, checkpoint.checkpoint)


class Recomputation(BoundaryProvider):
    """Where a block's hooks are checkpointed with it: wraps before the forward starts.

    Attributes:
        carriers: of the blocks that have sites; a list of their own, which torch.compile can walk over.
    """

    def __init__(self, state: ModelState) -> None:
        super().__init__(state)
        self.carriers: list[FrameCarrier] = []

    def attach(self) -> None:
        """Ask transformers once."""
        self.prepares: bool = recomputes_hooks()

    def detach(self) -> None:
        """Leave the blocks as they were."""
        for carrier in self.carriers:
            carrier.remove()
        self.carriers.clear()

    def carry(self, block: nn.Module) -> None:
        """Let the positions of a block's sites travel with its recomputation."""
        if not any(carrier.block is block for carrier in self.carriers):
            self.carriers.append(FrameCarrier(self.state.running, block))

    def starting(self, call: Mapping[str, Any]) -> None:
        """Wrap in training."""
        if self.state.model.training:
            for carrier in self.carriers:
                carrier.wrap()


@cache
def recomputes_hooks() -> bool:
    """Whether a block's hooks run inside of what transformers checkpoints: asked of a block that does nothing."""

    class Block(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers' types are not followed
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
        order.append("checkpoint")
        return function(*args)

    order: list[str] = []
    block = Block().train()
    for flag, function in zip(_FLAGS, _FUNCTIONS, strict=True):
        setattr(block, flag, True)
        setattr(block, function, checkpoint)
    block.register_forward_pre_hook(lambda *_: order.append("hook"))
    block(torch.zeros(1))
    return order[0] == "checkpoint"


class _Carrying:
    """A checkpointing function whose argument runs inside the frame, and under the factor, of its first call."""

    def __init__(self, running: Running, checkpoint: Callable[..., Any]) -> None:
        self.running = running
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame, under = self.running.frame, self.running.under
        if frame is None:
            return self.checkpoint(function, *args, **kwargs)
        inner = replace(frame, prepared={}, ready={}, keeper=None, counts_from_end=False)

        def within(*given: Any, **named: Any) -> Any:
            outer = self.running.frame
            try:
                self.running.frame = inner
                if under is None or under is self.running.under:
                    return function(*given, **named)
                return under(partial(function, *given, **named))
            finally:
                self.running.frame = outer

        return self.checkpoint(within, *args, **kwargs)
