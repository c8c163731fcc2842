"""Does a network compute what we think it computes? Interchange interventions and alignment search.

The toolkit that ReFT comes from, on the sites, positions and rotations of the tuner. `docs/causal.md` leads through
it.
"""

from .distribution import Distribution
from .model import CausalModel

__all__ = ["CausalModel", "Distribution"]
