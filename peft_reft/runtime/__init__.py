"""One forward: the way in, what the call says, where its prompt ends, the plan, the rows, the edit."""

from .edit import Edit, apply_edits
from .frames import Frame
from .runtime import Runtime, runtime_of
from .state import ModelState, state_of

__all__ = ["Edit", "Frame", "ModelState", "Runtime", "apply_edits", "runtime_of", "state_of"]
