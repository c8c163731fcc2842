"""The edits h → h′, one kind a file, one row each in the registry.

A new kind is a file with its mathematics and a subclass of `Intervention`, and a line of import here.
"""

from . import (
    bias,
    consreft,
    direft,
    direft_orthogonal,
    gated,
    lobireft,
    loreft,
    noreft,
    red,
    reft_r1,
    rotated_interchange,
    sae,
)
from .affine import Affine
from .base import Intervention
from .registry import intervention_class, register_intervention
from .rotation import orthonormal_rows

__all__ = [
    "Affine",
    "Intervention",
    "bias",
    "consreft",
    "direft",
    "direft_orthogonal",
    "gated",
    "intervention_class",
    "lobireft",
    "loreft",
    "noreft",
    "orthonormal_rows",
    "red",
    "reft_r1",
    "register_intervention",
    "rotated_interchange",
    "sae",
]
