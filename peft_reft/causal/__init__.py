"""Does a network compute what we think it computes? Causal models and interchange interventions.

The toolkit that ReFT comes from, on the sites, positions and rotations of the tuner.
"""

from .distribution import Distribution
from .edits import Edit, add, mean, noise, put, subtract, zero
from .interchange import collect, interchange, intervene
from .model import CausalModel
from .site import Column, Site
from .spaces import Autoencoder, Pca, Rotation, Space

__all__ = [
    "Autoencoder",
    "CausalModel",
    "Column",
    "Distribution",
    "Edit",
    "Pca",
    "Rotation",
    "Site",
    "Space",
    "add",
    "collect",
    "interchange",
    "intervene",
    "mean",
    "noise",
    "put",
    "subtract",
    "zero",
]
