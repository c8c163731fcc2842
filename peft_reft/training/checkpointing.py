"""Positions inside a checkpointed block: they travel with the call, so that recomputation sees the same ones.

transformers checkpoints a block's `forward`, which leaves hooks of the block outside and those of its parts
(attention, feed-forward) inside: they run again in the backward pass, when the model's forward is over
(modeling_layers.py, `GradientCheckpointingLayer`). So the function that is checkpointed carries its frame along. R is
computed from its raw parameter in there: a tensor of another region's graph must not be used across regions that are
recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from peft_reft.runtime import Runtime
from peft_reft.runtime.frames import Frame, Running

__all__ = ["FrameCarrier", "carry_frames"]

_FUNCTION = "_gradient_checkpointing_func"


def carry_frames(runtime: Runtime, path: str, stack: str) -> None:
    """Let the positions of a site inside a block travel with the block's recomputation.

    Args:
        runtime: of the model.
        path: of the site.
        stack: path of its stack.
    """
    inner = path.removeprefix(f"{stack}.").split(".")
    if len(inner) < 2:
        return  # the block itself: its hooks lie outside of what is recomputed
    block = runtime.state.model.get_submodule(f"{stack}.{inner[0]}")
    if not any(isinstance(handle, FrameCarrier) and handle.block is block for handle in runtime.handles):
        runtime.keep(FrameCarrier(runtime.state.running, block))


class FrameCarrier:
    """A pre-hook of one block; `remove` takes it and what it set off the block again."""

    def __init__(self, running: Running, block: nn.Module) -> None:
        self.running = running
        self.block = block
        self.handle = block.register_forward_pre_hook(self)

    def __call__(self, block: nn.Module, args: Any) -> None:
        """Wrap the function by which the block is about to be checkpointed, unless it is wrapped already."""
        if not (getattr(block, "gradient_checkpointing", False) and block.training):
            return
        checkpoint = getattr(block, _FUNCTION)
        if not isinstance(checkpoint, _Carrying):
            setattr(block, _FUNCTION, _Carrying(self.running, checkpoint))

    def remove(self) -> None:
        """Leave the block as it was."""
        self.handle.remove()
        checkpoint = getattr(self.block, _FUNCTION, None)
        if isinstance(checkpoint, _Carrying):
            setattr(self.block, _FUNCTION, checkpoint.checkpoint)


class _Carrying:
    """A checkpointing function whose argument runs inside the frame in which it was first called."""

    def __init__(self, running: Running, checkpoint: Callable[..., Any]) -> None:
        self.running = running
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame = self.running.frame
        if frame is None:
            return self.checkpoint(function, *args, **kwargs)
        inner = Frame(frame.plans, frame.units, frame.rows, prepared={}, ready={})

        def within(*given: Any, **named: Any) -> Any:
            with self.running.during("frame", inner):
                return function(*given, **named)

        return self.checkpoint(within, *args, **kwargs)
