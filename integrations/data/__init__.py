"""From examples to batches that say where their prompts are."""

from .collator import ReftDataCollator
from .locations import add_intervention_locations
from .picture import PositionPicture
from .pyreft_locations import convert_intervention_locations
from .show import show_positions

__all__ = [
    "PositionPicture",
    "ReftDataCollator",
    "add_intervention_locations",
    "convert_intervention_locations",
    "show_positions",
]
