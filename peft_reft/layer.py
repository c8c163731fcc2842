"""`ReftLayer`: the interventions of all adapters at one site, a child module beside the site's own children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_reft.hub_format.errors import PositionError, SiteError
from peft_reft.hub_format.schema import SiteGroup

from .adapters import row_adapters
from .interventions import Intervention, intervention_class
from .interventions.base import Init
from .runtime.edit import Edit, apply_edits
from .runtime.frames import UnitKey, current_frame
from .sites import Tap, hidden_of, with_hidden, with_slice

if TYPE_CHECKING:
    from .runtime.hooks import Runtime

__all__ = ["UNIT", "ReftLayer", "UnitSpec"]

UNIT = "reft_"


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
        self.scaling: dict[str, float] = {}
        self.taps: dict[UnitKey, Tap] = {}
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

    def unit(self, key: UnitKey) -> Intervention:
        """The intervention of (adapter, unit)."""
        adapter, number = key
        interventions: Any = self._modules[f"{UNIT}{number}"]
        unit: Intervention = interventions[adapter]
        return unit

    def active_keys(self) -> list[UnitKey]:
        """(adapter, unit) of everything that edits here now."""
        if self._disable_adapters:
            return []
        if (rows := row_adapters(self.runtime)) is not None:
            return [(name, unit) for name in rows.names for unit in self.units.get(name, ())]
        return [(name, unit) for name in dict.fromkeys(self.active_adapters) for unit in self.units.get(name, ())]

    def edits_by(self, name: str) -> bool:
        """Whether an adapter has an intervention here, and adapters are not disabled."""
        return not self._disable_adapters and bool(self.units.get(name))

    def edit_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the site's module: its output with the active edits applied."""
        keys = [key for key in self.active_keys() if not self.taps[key].on_input]
        if not keys:
            return None
        edited = self._edit(hidden_of(output), keys)
        return None if edited is None else with_hidden(output, edited)

    def edit_input(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the site's module: its first input with the active edits applied."""
        keys = [key for key in self.active_keys() if self.taps[key].on_input]
        if not keys:
            return None
        name = None if args else next(iter(kwargs))
        edited = self._edit(args[0] if name is None else kwargs[name], keys)
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})

    def _edit(self, hidden: Tensor, keys: Sequence[UnitKey]) -> Tensor | None:
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
        flat = hidden.dim() == 2 and hidden.shape[0] == plan.batch * plan.length  # OPT's feed-forward part
        if flat:
            hidden = hidden.reshape(plan.batch, plan.length, -1)
        if hidden.shape[:2] != (plan.batch, plan.length):
            raise SiteError(
                f"{self.path} gave hidden states of shape {list(hidden.shape)}",
                code="site.shape",
                rule=f"[batch, seq, hidden] = [{plan.batch}, {plan.length}, …], as the model was called",
            )
        rotations = self.runtime.rotations(frame)
        chosen_rows = row_adapters(self.runtime)
        stack = None if chosen_rows is None else chosen_rows.stack
        taps = list(dict.fromkeys(self.taps[key] for key in keys))
        for tap in taps:
            chosen = [key for key in keys if self.taps[key] == tap]
            if stack is not None:
                edits = [Edit(stack.unit(self.path, key[1], plan.batch), None, 1.0, wide=True) for key in chosen]
            else:
                edits = [
                    Edit(
                        self.unit(key),
                        rotations.get((self.path, key)),
                        self.scaling[key[0]],
                        plan.sequences(chosen) if self.unit(key).across_tokens else None,
                        wide=self.unit(key).broadcasts and not self.training,
                    )
                    for key in chosen
                ]
            part = apply_edits(hidden[..., tap.start : tap.stop], plan.rows(chosen), edits)
            hidden = part if tap.width is None else with_slice(hidden, tap, part)
        return hidden.flatten(0, 1) if flat else hidden

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

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter's interventions; another becomes active where this one was."""
        super().delete_adapter(adapter_name)
        self.units.pop(adapter_name, None)
        self.scaling.pop(adapter_name, None)
        self.taps = {key: tap for key, tap in self.taps.items() if key[0] != adapter_name}

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = device or self.runtime.device_of(self.path)
        if target is None:
            return
        for name in self.adapter_layer_names:
            units: Any = self._modules[name]
            if adapter_name in units and not any(p.is_meta for p in units[adapter_name].parameters()):
                units[adapter_name].to(target)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"active={list(self.active_adapters)}"
