"""`ReftLayer`: the interventions of all adapters at one site, a child module beside the site's own children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError, PositionError, SiteError
from peft_reft.hub_format.schema import SiteGroup

from .adapters import Scales, row_adapters
from .interventions import Intervention, intervention_class
from .interventions.base import Init
from .runtime.activity import LiveUnit
from .runtime.edit import Edit, apply_edits
from .runtime.frames import current_frame
from .sites import Tap, hidden_of, with_hidden, with_slice

if TYPE_CHECKING:
    from .runtime.frames import StackPlan, UnitKey
    from .runtime.hooks import Runtime

__all__ = ["CHILD", "UNIT", "Place", "ReftLayer", "UnitSpec", "layers_of", "reft_layers", "unknown_adapter"]

CHILD = "reft"
"""Name of the layer among the children of its site."""
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

    def __init__(self, path: str, stack: str, runtime: Runtime) -> None:
        super().__init__()
        self.path = path
        self.stack = stack
        self.runtime = runtime
        self.adapter_layer_names: tuple[str, ...] = ()
        self.units: dict[str, tuple[int, ...]] = {}
        self.scaling = Scales()
        self.taps: dict[Place, Tap] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def update_layer(
        self,
        adapter_name: str,
        units: Sequence[UnitSpec],
        *,
        init_weights: Init,
        device: torch.device | None,
    ) -> None:
        """Add an adapter: for each spec one intervention."""
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
            )
            self.taps[adapter_name, spec.number] = spec.tap
            if spec.tap.on_input:
                self.runtime.hook_input(self)
        self.units[adapter_name] = tuple(spec.number for spec in units)
        self.scaling[adapter_name] = 1.0
        self._place_scale(adapter_name)
        self.runtime.changed(self)

    def unit(self, key: Place) -> Intervention:
        """The intervention of (adapter, unit)."""
        adapter, number = key
        interventions: Any = self._modules[f"{UNIT}{number}"]
        unit: Intervention = interventions[adapter]
        return unit

    def live(self) -> tuple[LiveUnit, ...]:
        """Everything that edits here now."""
        return self.runtime.activity().units.get(self.path, ())

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

    def edit_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the site's module: its output with the active edits applied."""
        units = self._units_at_work(on_input=False)
        if not units:
            return None
        edited = self._edit(hidden_of(output), units)
        return None if edited is None else with_hidden(output, edited)

    def edit_input(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the site's module: its first input with the active edits applied."""
        units = self._units_at_work(on_input=True)
        if not units:
            return None
        name = None if args else next(iter(kwargs))
        edited = self._edit(args[0] if name is None else kwargs[name], units)
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})

    def _units_at_work(self, *, on_input: bool) -> list[LiveUnit]:
        """What edits the module's input or output in this call. Decoding edits nothing, whatever the adapters are."""
        frame = current_frame(self.runtime)
        if frame is not None and frame.plans.get(self.stack) is None:
            return []
        return [one for one in self.live() if one.tap.on_input is on_input]

    def _edit(self, hidden: Tensor, units: Sequence[LiveUnit]) -> Tensor | None:
        """h with the edits of some units applied, or None where nothing is edited in this call."""
        frame = current_frame(self.runtime)
        if frame is None:
            raise PositionError(
                f"{self.path} ran outside of its model's forward, so its positions are not known",
                code="positions.outside",
                rule="positions are worked out once, where the model's forward starts",
                fix="call the whole model; for gradient checkpointing use the model's own "
                "(`gradient_checkpointing_enable`), which leaves hooks outside the recomputation",
            )
        plan = frame.plans.get(self.stack)
        if plan is None:
            return None
        flat = hidden.dim() == 2  # OPT's feed-forward part
        if flat:
            hidden = hidden.reshape(*plan.shape, -1)
        self._check_shape(hidden, plan)
        rotations = self.runtime.rotations(frame)
        chosen_rows = row_adapters(self.runtime)
        stack = None if chosen_rows is None else chosen_rows.stack
        for tap in dict.fromkeys(one.tap for one in units):
            members = [one for one in units if one.tap == tap]
            chosen = [one.key for one in members]
            if stack is not None:
                edits = [Edit(stack.unit(self.path, key[1], plan.batch), None, 1.0, wide=True) for key in chosen]
            else:
                edits = [self._at_work(one, rotations.get((self.path, one.key)), plan, chosen) for one in members]
            part = apply_edits(hidden[..., tap.start : tap.stop], plan.rows(chosen), edits)
            hidden = part if tap.width is None else with_slice(hidden, tap, part)
        return hidden.flatten(0, 1) if flat else hidden

    def _check_shape(self, hidden: Tensor, plan: StackPlan) -> None:
        if not torch.compiler.is_compiling() and hidden.shape[:2] != plan.shape:
            raise SiteError(
                f"{self.path} gave hidden states of shape {list(hidden.shape)}",
                code="site.shape",
                rule=f"[batch, seq, hidden] = [{plan.batch}, {plan.length}, …], as the model was called",
            )

    def _at_work(self, one: LiveUnit, rotation: Tensor | None, plan: StackPlan, chosen: Sequence[UnitKey]) -> Edit:
        """One unit with what it needs in this call; a compiled graph reads no name and no factor as a number."""
        compiling = torch.compiler.is_compiling()
        unit = one.module if compiling else self.unit((one.name, one.key[1]))
        return Edit(
            unit,
            rotation,
            one.factor if compiling else self.scaling[one.name],
            plan.sequences(chosen) if unit.across_tokens else None,
            wide=unit.broadcasts and not self.training,
        )

    # BaseTunerLayer looks for a wrapped layer; an edit wraps nothing, it stands beside.

    def get_base_layer(self) -> nn.Module:
        """The layer itself: there is no wrapped one."""
        return self

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
        self.runtime.changed(self)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; see PEFT's `BaseTunerLayer.enable_adapters`."""
        super().enable_adapters(enabled)
        self.runtime.changed(self)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter's interventions; another becomes active where this one was."""
        super().delete_adapter(adapter_name)
        for number in self.units.pop(adapter_name, ()):
            self.taps.pop((adapter_name, number), None)
        self.scaling.drop(adapter_name)
        self.runtime.changed(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Called by `to` and its like."""
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.units:
            self._place_scale(name)
        self.runtime.changed(self)
        return applied

    def _place_scale(self, adapter_name: str) -> None:
        numbers = self.units[adapter_name]
        parameters = self.unit((adapter_name, numbers[0])).parameters() if numbers else iter(())
        for parameter in parameters:
            self.scaling.to(adapter_name, parameter.device)
            break

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = device or self.runtime.device_of(self.path)
        if target is None:
            return
        for name in self.adapter_layer_names:
            units: Any = self._modules[name]
            if adapter_name in units and not any(p.is_meta for p in units[adapter_name].parameters()):
                units[adapter_name].to(target)
        if self.units.get(adapter_name):
            self._place_scale(adapter_name)
            self.runtime.changed(self)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"active={list(self.active_adapters)}"


def reft_layers(model: nn.Module) -> list[ReftLayer]:
    """The sites of a model, in the order of its modules.

    Raises:
        ConfigError: what was passed is no module.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(
            f"model is a {kind}",
            value=kind,
            rule="it is a model with ReFT adapters, a torch.nn.Module",
            fix="pass what get_peft_model or PeftModel.from_pretrained returned",
        )
    return [module for module in model.modules() if isinstance(module, ReftLayer)]


def layers_of(model: nn.Module, adapter: str, *, code: str | None = None) -> list[ReftLayer]:
    """The sites of one adapter, one or more.

    Args:
        model: a model with ReFT adapters, wrapped by PEFT or not.
        adapter: its name.
        code: of the error, if not that of its class.

    Raises:
        ConfigError: no ReFT adapter has that name, or what was passed is no module.
    """
    layers = [layer for layer in reft_layers(model) if isinstance(adapter, str) and adapter in layer.units]
    if not layers:
        raise unknown_adapter(model, adapter, code=code)
    return layers


def unknown_adapter(model: nn.Module, adapter: object, *, code: str | None = None) -> ConfigError:
    """The refusal of a name that no ReFT adapter of a model has."""
    known = sorted({name for layer in reft_layers(model) for name in layer.units})
    return ConfigError(
        f"there is no ReFT adapter {adapter!r}",
        code=code,
        value=adapter,
        rule=f"known are: {', '.join(known) or 'none'}",
    )
