"""The frames that are open in this thread: after a call there are none."""

from __future__ import annotations

from torch import nn

from peft_reft.runtime import Frame, state_of

__all__ = ["open_frames"]


def open_frames(model: nn.Module) -> list[Frame]:
    states = [state for module in model.modules() if (state := state_of(module)) is not None]
    return [state.running.frame for state in states if state.running.frame is not None]
