"""`ReftLayer`: the interventions of all adapters at one site, a child module beside the site's own children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_reft.hub_format.schema import SiteGroup

from .interventions import Intervention, intervention_class
from .interventions.base import Init
from .runtime import Runtime
from .runtime.activity import LiveUnit
from .runtime.devices import site_device
from .runtime.frames import Running
from .runtime.operands import Operands
from .runtime.ready import ReadyEdits
from .runtime.scales import Scales
from .runtime.site_edit import CHILD, edit_input, edit_output
from .runtime.state import ModelState
from .runtime.views import AdapterView
from .sites import Site, Tap

__all__ = ["CHILD", "UNIT", "Place", "ReftLayer", "UnitSpec", "units_at"]

UNIT = "reft_"
Place = tuple[str, int]
"""An adapter's name, and the number of a unit of it."""


@dataclass(frozen=True)
class UnitSpec:
    """One intervention to be made at a site: its number, its group, what it edits, and how wide that is."""

    number: int
    group: SiteGroup
    tap: Tap
    hidden_size: int


def units_at(site: Site, groups: tuple[SiteGroup, ...], hidden_size: int) -> list[UnitSpec]:
    """The interventions that an adapter of these groups has at a site."""
    view = AdapterView("", groups)
    return [
        UnitSpec(view.first_unit(number) + offset, groups[number], tap, tap.width or hidden_size * tap.form.streams)
        for number, tap in zip(site.groups, site.taps, strict=True)
        for offset in range(groups[number].units)
    ]


class ReftLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # peft's types are not followed
    """Holds `reft_<unit>.<adapter>`, one small module each, and the hook that applies the active ones.

    The names matter: PEFT strips an adapter's name only where it is the last part but one of a key
    (peft/tuners/tuners_utils.py, `_remove_adapter_name_from_state_dict_key`), and TRL makes a reference adapter by
    replacing `.default.` in names (trl/trainer/dpo_trainer.py).

    Args:
        path: dotted name of the site's module in the model.
        stack: path of the stack that the site belongs to.
        runtime: of the model.
    """

    active_adapters: list[str]  # a property of BaseTunerLayer
    path: str
    stack: str
    state: ModelState
    running: Running
    operands: Operands
    ready: ReadyEdits
    runtime: Runtime
    adapter_layer_names: tuple[str, ...]
    units: dict[str, tuple[int, ...]]
    scaling: Scales
    taps: dict[Place, Tap]
    merged_adapters: list[str]
    _disable_adapters: bool
    _active_adapter: list[str]
    _reads_input: bool  # sites that edit outputs only are spared that hook

    def __init__(self, path: str, stack: str, runtime: Runtime) -> None:
        super().__init__()
        self.__dict__.update(  # at once: a module looks at every attribute that is set, whether it is a parameter
            path=path,
            stack=stack,
            state=runtime.state,
            running=runtime.state.running,
            operands=runtime.operands,
            ready=runtime.ready,
            runtime=runtime,
            adapter_layer_names=(),
            units={},
            scaling=Scales(),
            taps={},
            merged_adapters=[],
            _disable_adapters=False,
            _active_adapter=[],
            _reads_input=False,
        )

    def attach(self, site: nn.Module) -> None:
        """Become the site's child, and edit what it gives out."""
        site.add_module(CHILD, self)
        self.state.layers[self.path] = self
        self.runtime.keep(site.register_forward_hook(edit_output))

    def update_layer(
        self,
        adapter_name: str,
        units: Sequence[UnitSpec],
        *,
        init_weights: Init,
        device: torch.device | None,
        complements: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Add an adapter: for each spec one intervention; `complements`: unit → what its R keeps out of."""
        for spec in units:
            group, name = spec.group, f"{UNIT}{spec.number}"
            if name not in self._modules:
                self.add_module(name, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, name)
            interventions: Any = self._modules[name]
            interventions[adapter_name] = intervention_class(group.intervention)(
                spec.hidden_size,
                group.r,
                act_fn=group.act_fn,
                dropout=group.dropout,
                init_weights=init_weights,
                options=group.options,
                device=device,
                complement=(complements or {}).get(spec.number),
            )
            self.taps[adapter_name, spec.number] = spec.tap
            if spec.tap.on_input and not self._reads_input:
                self._reads_input = True
                self.runtime.keep(self._site().register_forward_pre_hook(edit_input, with_kwargs=True))
        self.units[adapter_name] = tuple(spec.number for spec in units)
        self.scaling[adapter_name] = 1.0
        self._place_scale(adapter_name)
        self.state.changed(self)

    def unit(self, key: Place) -> Intervention:
        """The intervention of (adapter, unit)."""
        adapter, number = key
        interventions: Any = self._modules[f"{UNIT}{number}"]
        unit: Intervention = interventions[adapter]
        return unit

    def live(self) -> tuple[LiveUnit, ...]:
        """Everything that edits here now."""
        return self.state.activity().units.get(self.path, ())

    def active_keys(self) -> list[Place]:
        """(adapter, unit) of everything that edits here now."""
        return [(one.name, one.key[1]) for one in self.live()]

    def follow(self, adapter_name: str, source: str) -> None:
        """Let one adapter edit as another does now: with its factor, and with the subspaces of it that are on."""
        if source not in self.units:
            return
        self.scaling[adapter_name] = self.scaling[source]
        for number in self.units[source]:
            self.unit((adapter_name, number)).rows = self.unit((source, number)).rows

    def edits_by(self, name: str) -> bool:
        """Whether an adapter has an intervention here, and adapters are not disabled."""
        return not self._disable_adapters and bool(self.units.get(name))

    # BaseTunerLayer looks for a wrapped layer; an edit wraps nothing, it stands beside.

    def get_base_layer(self) -> nn.Module:
        """The layer itself: there is no wrapped one."""
        return self

    @property
    def in_features(self) -> int:
        """How wide what is edited is; of several widths at one site the widest."""
        return max((unit.hidden_size for unit in self.modules() if isinstance(unit, Intervention)), default=0)

    @property
    def out_features(self) -> int:
        """The same: an edit gives what it takes."""
        return self.in_features

    @property
    def weight(self) -> Tensor:
        """Not there: an edit has no weight of its own name."""
        raise AttributeError("a ReFT layer wraps no weight")

    @property
    def bias(self) -> Tensor:
        """Not there: an edit has no bias of its own name."""
        raise AttributeError("a ReFT layer wraps no bias")

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; see PEFT's `BaseTunerLayer.set_adapter`."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.state.changed(self)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; see PEFT's `BaseTunerLayer.enable_adapters`."""
        super().enable_adapters(enabled)
        self.state.changed(self)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter's interventions; another becomes active where this one was."""
        super().delete_adapter(adapter_name)
        for number in self.units.pop(adapter_name, ()):
            self.taps.pop((adapter_name, number), None)
        self.scaling.drop(adapter_name)
        self.state.changed(self)

    def train(self, mode: bool = True) -> ReftLayer:
        """As in `nn.Module`; that somebody chose a mode is told to the runtime, once for all sites."""
        super().train(mode)
        if self is next(iter(self.state.layers.values()), None):
            self.runtime.mode_changed()
        return self

    def _site(self) -> nn.Module:
        return self.state.model.get_submodule(self.path)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Called by `to` and its like."""
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.units:
            self._place_scale(name)
        self.state.changed(self)
        return applied

    def _place_scale(self, adapter_name: str) -> None:
        numbers = self.units[adapter_name]
        parameters = self.unit((adapter_name, numbers[0]))._parameters.values() if numbers else ()
        for parameter in parameters:
            if parameter is not None:
                self.scaling.to(adapter_name, parameter.device)
                break

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = device or site_device(self._site())
        if target is None:
            return
        for name in self.adapter_layer_names:
            units: Any = self._modules[name]
            if adapter_name in units and not any(p.is_meta for p in units[adapter_name].parameters()):
                units[adapter_name].to(target)
        if self.units.get(adapter_name):
            self._place_scale(adapter_name)
            self.state.changed(self)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"active={list(self.active_adapters)}"
