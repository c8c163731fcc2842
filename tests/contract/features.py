"""What the installed versions of other packages can do, asked of themselves: each question stands here once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import transformers as hf
from transformers.integrations.peft import PeftAdapterMixin

__all__ = ["NO_END", "load_adapter_brings_heads", "paged"]

NO_END = -1
"""An end token that no text has; older versions of transformers' prompt lookup do not take None."""


@cache
def load_adapter_brings_heads() -> bool:
    """Whether transformers' `load_adapter` loads modules that a config saves in full."""
    return "AuxiliaryTrainingWrapper" in inspect.getsource(PeftAdapterMixin.load_adapter)


def paged(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a paged cache under the names that this version of transformers has for them."""
    known = inspect.signature(hf.ContinuousBatchingConfig).parameters
    names = {} if "page_size" in known else {"page_size": "block_size"}
    return {names.get(name, name): value for name, value in settings.items()}
