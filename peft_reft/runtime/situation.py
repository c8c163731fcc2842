"""What is known about a call beside its tensors, and what follows from it: the tokens that each unit edits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from peft_reft.positions import AT_ONCE, Doubts

from .inputs import Explicit

__all__ = ["Situation", "UnitKey", "UnitMask"]

UnitKey = tuple[int, int]
"""An adapter's place among those that edit the stack, and the number of a unit of it."""


@dataclass(frozen=True)
class Situation:
    """What is known about a call beside its tensors.

    Attributes:
        role: of the stack: `"only"`, `"encoder"`, `"decoder"`.
        has_completion: whether the task has tokens after the prompt.
        trains_with_labels: the base is in training mode and its forward takes labels.
        encoder_edited: whether an adapter edits the encoder, which then gets the bare explicit tensors.
        explicit: what the caller states.
        prompt_width: slots of the prompt, where `generate` says it; else None.
        prompt_real: bool `[batch, prompt_width]`, the prompt's real slots, where `generate` was told them.
        doubts: where values that a call may not have are looked at.
    """

    role: str = "only"
    has_completion: bool = True
    trains_with_labels: bool = False
    encoder_edited: bool = False
    explicit: Explicit = field(default_factory=Explicit)
    prompt_width: int | None = None
    prompt_real: Tensor | None = None
    doubts: Doubts = AT_ONCE


@dataclass(frozen=True)
class UnitMask:
    """Tokens that one unit edits in this forward: bool `[batch, length]`, and its bound per row where known.

    `start`, long `[batch, length]`, is where each token's sequence starts; None where every row is one sequence.
    """

    mask: Tensor
    width: int | None
    start: Tensor | None
