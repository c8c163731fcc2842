"""lm-evaluation-harness with ReFT adapters. Importing this registers the model `peft-reft` with it."""

from .model import ReftLM

__all__ = ["ReftLM"]
