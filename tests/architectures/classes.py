"""Which classes are examined: those that transformers' auto classes name, by family, each class once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers.models.auto import modeling_auto as auto

__all__ = ["FAMILIES", "Subject", "subjects"]

FAMILIES = ("causal", "encoder-decoder", "image-text", "encoder", "classification", "embedding")

_NAMES = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "encoder-decoder": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image-text": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Subject:
    """One class to examine: its family, its name in transformers, the model type whose config makes it."""

    family: str
    name: str
    model_type: str


def subjects(family: str) -> list[Subject]:
    """The classes of a family, in the order of their names. A class stands in the first family that names it."""
    earlier = {
        name for other in FAMILIES[: FAMILIES.index(family)] for name in (one for one, _ in _listed(_mapping(other)))
    }
    found: dict[str, Subject] = {}
    for name, model_type in _listed(_mapping(family)):
        if name not in earlier:
            found.setdefault(name, Subject(family, name, model_type))
    return [found[name] for name in sorted(found)]


def _mapping(family: str) -> Mapping[str, object]:
    """Model type → class names. Embedding models are the bare models of every type that takes text."""
    if family != "embedding":
        return _NAMES[family]
    named = ("causal", "encoder-decoder", "encoder")
    types = {one for other in named for one in _NAMES[other]} | set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES)
    bare = {one: names for one, names in auto.MODEL_MAPPING_NAMES.items() if one in types}
    return {**bare, **auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}


def _listed(mapping: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for model_type, names in mapping.items():
        for name in (names,) if isinstance(names, str) else tuple(names):  # type: ignore[call-overload]
            yield name, model_type
