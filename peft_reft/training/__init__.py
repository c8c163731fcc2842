"""Training: what running trainers know and what is refused of them, sharding, checkpointing, packed weights."""

from . import fused_loss
from .boundary import Trainers
from .packed_base import PackedBase

__all__ = ["PackedBase", "Trainers", "fused_loss"]
