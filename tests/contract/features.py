"""What the installed versions of other packages can do, asked of themselves: each question stands here once."""

from __future__ import annotations

import inspect
from functools import cache

from transformers.integrations.peft import PeftAdapterMixin

__all__ = ["load_adapter_brings_heads"]


@cache
def load_adapter_brings_heads() -> bool:
    """Whether transformers' `load_adapter` loads modules that a config saves in full."""
    return "AuxiliaryTrainingWrapper" in inspect.getsource(PeftAdapterMixin.load_adapter)
