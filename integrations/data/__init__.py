"""From examples to batches that say where their prompts are."""

from .collator import ReftDataCollator

__all__ = ["ReftDataCollator"]
