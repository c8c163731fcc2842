"""What happens during a call: hooks, the frame of one forward, the session of one generation."""

from .edit import Edit, apply_edits
from .frames import Frame, current_frame
from .hooks import Runtime

__all__ = ["Edit", "Frame", "Runtime", "apply_edits", "current_frame"]
