"""ReFT and LoRA on one base: the model, and how it is saved and loaded."""

from .model import MixedReftModel

__all__ = ["MixedReftModel"]
