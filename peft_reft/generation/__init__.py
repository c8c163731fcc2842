"""Generation: sessions, caches, prompt caches, continuous batching; two boundary providers for the runtime."""

from .boundary import Generations
from .continuous import ContinuousBatching

__all__ = ["ContinuousBatching", "Generations"]
