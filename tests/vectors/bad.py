"""The folders that a reader refuses: name → what is wrong, how it is made, and the code and file of the refusal."""

from __future__ import annotations

from .activations import BAD_ACTIVATIONS
from .bad_bytes import HEADER, JSON, VALUES
from .bad_configs import CONFIGS
from .bad_places import BUNDLES, ON_BASE
from .bad_tensors import MANIFESTS, TENSORS, VERSIONS
from .changes import Bad
from .orthogonal import BAD_ORTHOGONAL

__all__ = ["BAD"]

BAD: dict[str, Bad] = {
    **JSON,
    **HEADER,
    **VALUES,
    **TENSORS,
    **MANIFESTS,
    **VERSIONS,
    **CONFIGS,
    **BUNDLES,
    **ON_BASE,
    **BAD_ACTIVATIONS,
    **BAD_ORTHOGONAL,
}
