"""A config's field, where its layers may differ: `config.head_dim` is an error there, or the value of no layer.

Transformers keeps such fields by layer (`per_layer_config`) and raises an error of its own class when the whole
config is asked for one. Sizes and counts of a base's config are read here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["config_field"]


def config_field(config: Any, name: str, default: Any = None) -> Any:
    """A field's value; a list of the layers' values where these differ.

    Args:
        config: of a model, or None.
        name: of the field.
        default: where the config has no such field.
    """
    own = (getattr(config, "attribute_map", None) or {}).get(name, name)
    if own not in (getattr(config, "per_layer_attributes", None) or ()):
        return getattr(config, name, default)
    values = [getattr(layer, name, default) for layer in config.per_layer_config]
    return values if any(value != values[0] for value in values) else next(iter(values), default)
