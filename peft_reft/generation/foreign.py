"""A generation that did not start with the model's own `generate`: it is refused where it can be seen.

Its sequences grow from forward to forward, and nothing else would tell where the prompt ended.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

from torch import nn
from transformers import GenerationMixin

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.past import past_length
from peft_reft.runtime.state import ModelState

__all__ = ["refuse_foreign_generation"]

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


def refuse_foreign_generation(state: ModelState, cache: Any) -> None:
    """Refuse the first forward of such a generation.

    It is called for forwards as transformers' `generate` makes them, on an empty cache or with `use_cache=False`:
    only these look for it, on Python's stack.

    Args:
        state: of the model.
        cache: that the forward got, or None.

    Raises:
        PromptBoundaryError: `generate` was called on the class, or on a model that holds this one.
    """
    if not state.activity().units or (cache is not None and past_length(cache) != 0):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE:
            generating = frame.f_locals.get("self")
            if isinstance(generating, nn.Module) and any(part is state.model for part in generating.modules()):
                break
        frame = frame.f_back
    if frame is None:
        return
    whole = generating is state.model
    raise PromptBoundaryError(
        f"a {type(generating).__name__} generates, and its generate is not the one of the model with the adapters",
        code="positions.unbound_generate",
        rule="the prompt's end is known only where model.generate starts",
        fix="call model.generate(...), not type(model).generate(model, ...)"
        if whole
        else "make the PEFT model of the model that generates; layers_pattern picks one of its stacks",
    )
