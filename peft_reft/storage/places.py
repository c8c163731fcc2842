"""Where an adapter's tensors are in a model, and under which names PEFT finds them there."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.interventions import Intervention
from peft_reft.layer import CHILD, UNIT, ReftLayer
from peft_reft.runtime.state import state_of

__all__ = ["AdapterTensor", "adapter_tensors", "layers_in"]


class AdapterTensor(NamedTuple):
    """Where a tensor of an adapter is: its unit and the unit's number, its name there, and the tensor."""

    unit: Intervention
    number: int
    name: str
    held: Tensor


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, AdapterTensor]:
    """The model's name of each tensor of an adapter's interventions → where it is."""
    found = {}
    for path, layer in layers_in(model):
        path = path.removeprefix("_fsdp_wrapped_module.")  # FSDP's own, which its state dicts leave out
        for number in layer.units.get(adapter_name, ()):
            unit = layer.unit((adapter_name, number))
            for name, held in unit.named_tensors().items():
                found[f"{path}.{UNIT}{number}.{adapter_name}.{name}"] = AdapterTensor(unit, number, name, held)
    return found


def layers_in(model: nn.Module) -> list[tuple[str, ReftLayer]]:
    """The sites of a model with their names in it: looked up where they are known to lie, else looked for."""
    for prefix in (MODEL_PREFIX, ""):
        base = _child(model, prefix)
        state = None if base is None else state_of(base)
        if base is not None and state is not None:
            known = [(f"{path}.{CHILD}", layer) for path, layer in state.layers.items()]
            if all(_child(base, path) is layer for path, layer in known):
                return [(prefix + path, layer) for path, layer in known]
    return [(path, module) for path, module in model.named_modules() if isinstance(module, ReftLayer)]


def _child(model: nn.Module, path: str) -> nn.Module | None:
    """What lies at a path by the names of modules alone: wrappers, which answer for what they wrap, lie between."""
    found: nn.Module | None = model
    for part in filter(None, path.split(".")):
        found = None if found is None else found._modules.get(part)
    return found
