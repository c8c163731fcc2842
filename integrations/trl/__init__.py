"""TRL's trainers with ReFT adapters. Importing this imports trl."""

from .online import ReftGRPOTrainer, ReftRLOOTrainer
from .sft import ReftSFTTrainer

__all__ = ["ReftGRPOTrainer", "ReftRLOOTrainer", "ReftSFTTrainer"]
