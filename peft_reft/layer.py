"""`ReftLayer`: the interventions of all adapters at one site, a child module beside the site's own children."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_reft.hub_format.errors import PositionError, SiteError
from peft_reft.hub_format.schema import SiteGroup

from .interventions import Intervention, intervention_class
from .interventions.base import Init
from .runtime.edit import Edit, apply_edits
from .runtime.frames import UnitKey, current_frame

if TYPE_CHECKING:
    from .runtime.hooks import Runtime

__all__ = ["UNIT", "ReftLayer"]

UNIT = "reft_"


class ReftLayer(nn.Module, BaseTunerLayer):
    """Holds `reft_<unit>.<adapter>`, one small module each, and the hook that applies the active ones.

    The names matter: PEFT strips an adapter's name only where it is the last part but one of a key
    (peft/tuners/tuners_utils.py, `_remove_adapter_name_from_state_dict_key`), and TRL makes a reference adapter by
    replacing `.default.` in names (trl/trainer/dpo_trainer.py).

    Args:
        path: dotted name of the site's module in the model.
        stack: path of the stack that the site belongs to.
        runtime: of the model.
    """

    def __init__(self, path: str, stack: str, runtime: Runtime) -> None:
        super().__init__()
        self.path = path
        self.stack = stack
        self.runtime = runtime
        self.adapter_layer_names: tuple[str, ...] = ()
        self.units: dict[str, tuple[int, ...]] = {}
        self.scaling: dict[str, float] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def update_layer(
        self,
        adapter_name: str,
        units: Sequence[tuple[int, SiteGroup]],
        *,
        hidden_size: int,
        init_weights: Init,
        device: torch.device | None,
    ) -> None:
        """Add an adapter: for each (number, group) one intervention."""
        for number, group in units:
            name = f"{UNIT}{number}"
            if name not in self._modules:
                self.add_module(name, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, name)
            self._modules[name][adapter_name] = intervention_class(group.intervention)(  # type: ignore[index]
                hidden_size,
                group.r,
                act_fn=group.act_fn,
                dropout=group.dropout,
                init_weights=init_weights,
                options=group.options,
                device=device,
            )
        self.units[adapter_name] = tuple(number for number, _ in units)
        self.scaling[adapter_name] = 1.0

    def unit(self, key: UnitKey) -> Intervention:
        """The intervention of (adapter, unit)."""
        adapter, number = key
        return self._modules[f"{UNIT}{number}"][adapter]  # type: ignore[index, return-value]

    def active_keys(self) -> list[UnitKey]:
        """(adapter, unit) of everything that edits here now."""
        if self._disable_adapters:
            return []
        return [(name, unit) for name in self.active_adapters for unit in self.units.get(name, ())]

    def edit_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the site's module: its output with the active edits applied."""
        keys = self.active_keys()
        if not keys:
            return None
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
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.shape[:2] != (plan.batch, plan.length):
            raise SiteError(
                f"{self.path} gave hidden states of shape {list(hidden.shape)}",
                code="site.shape",
                rule=f"[batch, seq, hidden] = [{plan.batch}, {plan.length}, …], as the model was called",
            )
        rotations = self.runtime.rotations(frame)
        edits = [Edit(self.unit(key), rotations.get((self.path, key)), self.scaling[key[0]]) for key in keys]
        edited = apply_edits(hidden, plan.rows(keys), edits)
        if isinstance(output, Tensor):
            return edited
        return type(output)([edited, *output[1:]]) if isinstance(output, list) else (edited, *output[1:])

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

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = device or self.runtime.device_of(self.path)
        if target is None:
            return
        for name in self.adapter_layer_names:
            units = self._modules[name]
            if adapter_name in units and not any(p.is_meta for p in units[adapter_name].parameters()):  # type: ignore[index, operator, union-attr]
                units[adapter_name].to(target)  # type: ignore[index, union-attr]

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"active={list(self.active_adapters)}"
