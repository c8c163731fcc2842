"""A mixed model as the files below it see it: two tuners on one base, and what belongs to neither alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from peft import PeftConfig
from torch import nn

__all__ = ["ReferenceNames", "TwoParts"]


class ReferenceNames(Protocol):
    """The copies of adapters that references are made of."""

    @property
    def names(self) -> frozenset[str]:
        """Of all of them."""


class TwoParts(Protocol):
    """A `MixedReftModel`.

    Attributes:
        base_model: the tuner of the weight adapters.
        edits: the tuner of the ReFTs; None before there is one.
        device: of the base.
        active_adapter: of the weight adapters.
    """

    base_model: Any
    edits: Any
    device: Any
    active_adapter: Any

    @property
    def references(self) -> ReferenceNames:
        """The copies of adapters that preference training compares with."""

    @property
    def peft_config(self) -> Mapping[str, PeftConfig]:
        """Name → config of every adapter."""

    @property
    def active_adapters(self) -> list[str]:
        """Names, weight adapters first."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of both parts and the base."""

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig) -> None:
        """Add one of either part."""

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make exactly these active."""

    def add_edit(self, name: str, config: Any, low_cpu_mem_usage: bool) -> None:
        """Add a ReFT, active or not."""

    def add_weights(self, name: str, config: PeftConfig, low_cpu_mem_usage: bool) -> None:
        """Add a weight adapter, active or not."""

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or train."""

    def eval(self) -> Any:
        """As in `nn.Module`."""
