"""Two tuners of PEFT on one base model: what holds them together, below the verbs of `MixedReftModel`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from torch import nn

from peft_reft.adapters.names import check_known
from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError
from peft_reft.model import ReftModel

from . import checks
from .orthogonal import Orthogonal
from .reference import References

__all__ = ["TwoTuners"]


class TwoTuners(PeftModelForCausalLM):  # type: ignore[misc]  # peft's types are not followed
    """A weight tuner, which PEFT knows, and a ReFT tuner on the same base; `edits` is None before there is a ReFT."""

    def __init__(
        self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        self.__dict__["edits"] = None  # a plain attribute: its modules are the base's own, already registered there
        self.__dict__["references"] = References()
        self.__dict__["orthogonal"] = None
        super().__init__(model, peft_config, adapter_name, **kwargs)

    @classmethod
    def _made(cls, model: nn.Module, configs: Mapping[str, PeftConfig], autocast_adapter_dtype: bool) -> Self:
        """A model with adapters of these configs, which were checked; all active."""
        checks.check_bare(model)
        weights = {name: config for name, config in configs.items() if not isinstance(config, ReftConfig)}
        first = weights.pop("default")
        for config in configs.values():
            config.base_model_name_or_path = model.__dict__.get("name_or_path") or None
        mixed = cls(model, first, "default", autocast_adapter_dtype=autocast_adapter_dtype)
        rest = {**weights, **{name: config for name, config in configs.items() if isinstance(config, ReftConfig)}}
        try:
            for name, config in rest.items():
                mixed.add_adapter(name, config, autocast_adapter_dtype=autocast_adapter_dtype)
            mixed.set_adapter(list(configs))
        except Exception:
            mixed.unload()  # the base as it was: a second try must not find half of the first
            raise
        return mixed

    @classmethod
    def _around(cls, model: PeftModel) -> Self:
        """A model of the very modules of a PEFT model, which was checked."""
        mixed = cls.__new__(cls)
        for name, value in model.__dict__.items():
            mixed.__dict__[name] = copy.copy(value) if name.startswith("_") else value  # the tables of an `nn.Module`
        mixed.__dict__.update(edits=None, references=References(), orthogonal=None)
        mixed.base_model_prepare_inputs_for_generation = model.base_model.prepare_inputs_for_generation
        return mixed

    def _kept_apart(self, orthogonal: bool) -> Self:
        self.__dict__["orthogonal"] = Orthogonal(self.base_model.model) if orthogonal else None
        return self

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Name → config of every adapter of both parts; a new dict, changing it changes nothing."""
        weights = super().peft_config
        return {**weights, **({} if self.edits is None else self.edits.peft_config)}

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, weight adapters first."""
        return [*self.base_model.active_adapters, *([] if self.edits is None else self.edits.active_adapters)]

    def train(self, mode: bool = True) -> Self:
        """As in `nn.Module`; training is refused where its checkpoints would hold the first weight adapter alone."""
        if mode:
            checks.check_trainer()
        super().train(mode)
        return self

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Freeze adapters of either part, or train them: so one part can be trained on top of the other.

        Args:
            adapter_names: a name or several; active or not.
            requires_grad: whether they are trained.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        check_known(names, self.peft_config)
        for name in names:
            self._tuner_of(name).set_requires_grad(name, requires_grad)

    def unload(self) -> nn.Module:
        """The base model without either part."""
        if self.edits is not None:
            self.edits.unload()
        base: nn.Module = self.base_model.unload()
        return base

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused while there are ReFT adapters: edits cannot be merged into weights."""
        self._edit_tuner().merge_adapter()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> None:
        """Refused while there are ReFT adapters: edits cannot be merged into weights."""
        self._edit_tuner().merge_and_unload()

    def _tuner_of(self, name: str) -> Any:
        return self.edits if isinstance(self.peft_config[name], ReftConfig) else self.base_model

    def _edit_tuner(self) -> ReftModel:
        if self.edits is None:
            raise ConfigError("the model has no ReFT adapter yet", fix="use PEFT's own model for a LoRA alone")
        edits: ReftModel = self.edits
        return edits

    def add_edit(self, name: str, config: ReftConfig, low_cpu_mem_usage: bool) -> None:
        """Add a ReFT; what is active stays so. For users it is `add_adapter`."""
        base = self.base_model.model
        if self.edits is None:
            base.__dict__.pop("peft_config", None)  # the weight tuner's: a new tuner would add itself to it
            self.__dict__["edits"] = ReftModel(base, {name: config}, name, low_cpu_mem_usage=low_cpu_mem_usage)
            base.peft_config = self.peft_config
        else:
            self._inject(self.edits, name, config, low_cpu_mem_usage)

    def add_weights(self, name: str, config: PeftConfig, low_cpu_mem_usage: bool) -> None:
        """Add a weight adapter; what is active stays so. For users it is `add_adapter`."""
        checks.check_same_type(name, config, self.peft_type)
        self._inject(self.base_model, name, config, low_cpu_mem_usage)

    def _inject(self, tuner: Any, name: str, config: PeftConfig, low_cpu_mem_usage: bool) -> None:
        base = self.base_model.model
        tuner.peft_config[name] = config
        try:
            tuner.inject_adapter(base, name, low_cpu_mem_usage=low_cpu_mem_usage)
        except Exception:
            del tuner.peft_config[name]
            raise
        base.peft_config = self.peft_config
