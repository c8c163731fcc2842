"""Training: what running trainers know and what is refused of them, sharding, gradient checkpointing."""

from .boundary import Trainers

__all__ = ["Trainers"]
