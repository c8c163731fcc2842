"""Tensors that PEFT saves beside the edits: modules in full, trained tokens, and embeddings of a grown vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import EMBEDDING_LAYER_NAMES
from torch import Tensor

from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.errors import AdapterLoadError

__all__ = ["belongs_beside", "embedding_paths", "is_grown_embedding", "saved_name", "without_copies"]

SAVED = "modules_to_save"
WRAPPED = (SAVED, "original_module", "base_layer")
"""Parts of names by which PEFT keeps a module below its wrapper or layer."""


def saved_name(key: str, adapter_name: str) -> str:
    """The name in a file of an adapter's copy of a module that it saves in full.

    PEFT saves the copy under the module's own name. Where the vocabulary grew it takes everything below an embedding
    besides (peft/utils/save_and_load.py, `save_embedding_layers`), the copy a second time among it, under a name that
    it never reads; by this name both are one entry.
    """
    module, found, rest = key.rpartition(f".{SAVED}.{adapter_name}.")
    return f"{module}.{rest}" if found else key


def without_copies(remapped: Mapping[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """A file's tensors without the second ones of embeddings that are saved in full: see `saved_name`.

    Raises:
        AdapterLoadError: the two differ, or the one that PEFT reads is not there.
    """
    kept = dict(remapped)
    for name, tensor in remapped.items():
        module, _, parameter = str(name).rpartition(".")  # one that is no text is refused by name, with the others
        if module.rpartition(".")[2] != SAVED:
            continue
        twin = remapped.get(f"{module}.{adapter_name}.{parameter}")
        if twin is None or twin.shape != tensor.shape or not torch.equal(twin, tensor):
            raise AdapterLoadError(
                f"the tensor {name[:120]!r} stands in the file under two names with two values",
                code="load.fit",
                rule="a module that is saved in full has one value, under its own name",
                fix="save the adapter again from the model that was trained",
            )
        del kept[name]
    return kept


def embedding_paths(model: Any) -> frozenset[str]:
    """Paths of the model's input and output embeddings, `base_model.model.` left out."""
    modules = []
    for get in (getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")):
        try:
            modules.append(get() if callable(get) else None)
        except (NotImplementedError, AttributeError):  # transformers' answer where there is none
            continue
    wanted = {id(module) for module in modules if module is not None}
    return frozenset(path.removeprefix(MODEL_PREFIX) for path, module in model.named_modules() if id(module) in wanted)


def is_grown_embedding(name: str, paths: frozenset[str]) -> bool:
    """Whether a tensor is an embedding's own, or of the embedding as it was below PEFT's wrapper."""
    module = name.removeprefix(MODEL_PREFIX).rpartition(".")[0]
    owner, _, last = module.rpartition(".")
    whole = owner if last in WRAPPED else module
    return whole in paths or whole.rpartition(".")[2] in EMBEDDING_LAYER_NAMES


def belongs_beside(name: str, adapter_name: str, paths: frozenset[str]) -> bool:
    """Whether a tensor under the model's name is PEFT's own; `paths` are those of the embeddings."""
    if f".{SAVED}.{adapter_name}." in name or "token_adapter" in name.split("."):
        return True
    return is_grown_embedding(name, paths)
