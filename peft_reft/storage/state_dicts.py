"""Where PEFT asks the tuner for an adapter's tensors, names them in a file, and brings a file's back."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.envelope import MODEL_PREFIX

from .beside import saved_name, without_copies
from .loading import check_state_dict
from .outgoing import outgoing_of
from .places import adapter_tensors

__all__ = ["SavingTuner"]


class SavingTuner(BaseTuner):  # type: ignore[misc]  # peft's types are not followed
    """The part of the tuner that PEFT's saving and loading call."""

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, config: ReftConfig, **kwargs: Any) -> dict[str, Tensor]:
        """An adapter's tensors; where transformers asks, its config is told, which is saved before them."""
        tensors: dict[str, Tensor] = super()._get_adapter_state_dict(model=model, config=config, **kwargs)
        name = kwargs["adapter_name"]
        config.outgoing = outgoing_of(model, tensors, lambda key: cls._remove_adapter_name_from_key(key, name))
        return tensors

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The name of a tensor in a file; an adapter's copy of a module has the module's, and stands there once."""
        name: str = super()._remove_adapter_name_from_key(saved_name(key, adapter_name), adapter_name)
        return name

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: ReftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Map a file's keys to the model's, after checking that every tensor has its place and its bytes."""
        held = {}  # PEFT asks the whole model for its tensors by name; an adapter's are all in our layers
        for key in adapter_tensors(model, adapter_name):
            stored = cls._remove_adapter_name_from_key(key, adapter_name)
            held[stored] = held[MODEL_PREFIX + stored] = key  # a model without PEFT's wrapper has no such prefix
        remapped = without_copies({held.get(key, key): tensor for key, tensor in state_dict.items()}, adapter_name)
        check_state_dict(model, config, adapter_name, state_dict, remapped)
        return remapped
