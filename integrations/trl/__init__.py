"""TRL's trainers with ReFT adapters. Importing this imports trl."""

from .sft import ReftSFTTrainer

__all__ = ["ReftSFTTrainer"]
