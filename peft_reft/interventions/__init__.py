"""The edits h → h′, one kind a file, one row each in the registry.

A new kind is a file with its mathematics and a subclass of `Intervention`, and a line of import here.
"""

from . import direft, loreft
from .base import Intervention
from .registry import intervention_class, register_intervention
from .rotation import orthonormal_rows

__all__ = ["Intervention", "direft", "intervention_class", "loreft", "orthonormal_rows", "register_intervention"]
