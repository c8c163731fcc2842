"""The one warning: a forward that may be a prefill, and may be an evaluator's prompt and answer in one.

An evaluator that scores an answer by one forward over prompt and answer states nothing, and gets the edits of a
prefill: `l<n>` on the answer. From the forward's arguments nothing tells the two apart.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["PositionWarning", "warn_of_prefill"]

_INSIDE = ("peft_reft", "peft", "torch", "transformers", "accelerate", "contextlib")
"""Packages whose frames a caller does not know."""


class PositionWarning(UserWarning):
    """A forward states no prompt, and the edited tokens depend on where the prompt ends.

    Raised once per model. Silence it, where every such forward is a prefill, with
    `warnings.simplefilter("ignore", peft_reft.PositionWarning)`.
    """


def warn_of_prefill(length: int, names: list[str]) -> None:
    """Warn at the line that called the model.

    Args:
        length: how many tokens per row the forward has.
        names: of the adapters whose positions depend on the prompt's end.
    """
    frame = _caller()
    code = frame.f_code
    warnings.warn_explicit(
        f"a bare forward of {length} tokens is taken for a prefill, all of them prompt: nothing says where the prompt "
        f"ends, and adapter(s) {', '.join(map(repr, names))} edit tokens counted from its end. If an answer stands "
        "behind the prompt, as in scoring or metrics, pass prompt_lengths or prompt_mask, or labels that are -100 on "
        "the prompt; lm-evaluation-harness does so with --model peft-reft. Said once per model.",
        PositionWarning,
        code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry={},  # one of its own: Python would be silent about a second model at the same line
    )


def _caller() -> FrameType:
    """The innermost frame outside of the packages that a forward passes through."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _package(frame) in _INSIDE:
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
