"""The edits h → h′, one kind a file, one row each in the registry.

A new kind is a file with its mathematics and a subclass of `Intervention`, and a line of import here.
"""

from . import (
    adapter,
    bias,
    clamp,
    consreft,
    direft,
    direft_orthogonal,
    distribution,
    gated,
    heads,
    lobireft,
    loreft,
    noreft,
    prosv,
    red,
    reft_r1,
    rotated_interchange,
    sae,
)
from .affine import Affine
from .auxiliary import PenaltyWeight, has_own_penalty, has_penalty, has_row_penalty
from .base import Intervention
from .registry import intervention_class, register_intervention
from .rotation import orthonormal_rows

__all__ = [
    "Affine",
    "Intervention",
    "PenaltyWeight",
    "adapter",
    "bias",
    "clamp",
    "consreft",
    "direft",
    "direft_orthogonal",
    "distribution",
    "gated",
    "has_own_penalty",
    "has_penalty",
    "has_row_penalty",
    "heads",
    "intervention_class",
    "lobireft",
    "loreft",
    "noreft",
    "orthonormal_rows",
    "prosv",
    "red",
    "reft_r1",
    "register_intervention",
    "rotated_interchange",
    "sae",
]
