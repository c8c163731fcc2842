"""Does a network compute what we think it computes? Causal models and interchange interventions.

The toolkit that ReFT comes from, on the sites, positions and rotations of the tuner.
"""

from .accuracy import Accuracy, answered, interchange_accuracy, wilson_interval
from .adapter import to_adapter
from .annealing import AnnealBoundaries
from .answers import Answers
from .calibration import Calibration, CalibrationWarning, Nulls, over_sites
from .dataset import InterchangeCollator, InterchangeDataset
from .distribution import Distribution
from .edits import Edit, add, mean, noise, put, subtract, zero
from .interchange import collect, interchange, intervene
from .localist import localist_search
from .losses import class_loss
from .model import CausalModel
from .padding import PadRows
from .pairs import Pair, every_pair, sample_pairs
from .search import AlignmentSearch
from .site import Column, Site
from .spaces import Autoencoder, Pca, Rotation, Space
from .sweep import Sweep, sweep
from .untrained import untrained_like

__all__ = [
    "Accuracy",
    "AlignmentSearch",
    "AnnealBoundaries",
    "Answers",
    "Autoencoder",
    "Calibration",
    "CalibrationWarning",
    "CausalModel",
    "Column",
    "Distribution",
    "Edit",
    "InterchangeCollator",
    "InterchangeDataset",
    "Nulls",
    "PadRows",
    "Pair",
    "Pca",
    "Rotation",
    "Site",
    "Space",
    "Sweep",
    "add",
    "answered",
    "class_loss",
    "collect",
    "every_pair",
    "interchange",
    "interchange_accuracy",
    "intervene",
    "localist_search",
    "mean",
    "noise",
    "over_sites",
    "put",
    "sample_pairs",
    "subtract",
    "sweep",
    "to_adapter",
    "untrained_like",
    "wilson_interval",
    "zero",
]
