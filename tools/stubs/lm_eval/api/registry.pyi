"""See `lm_eval/__init__.pyi`."""

from collections.abc import Callable
from typing import TypeVar

_Model = TypeVar("_Model")

def register_model(*names: str) -> Callable[[_Model], _Model]: ...
