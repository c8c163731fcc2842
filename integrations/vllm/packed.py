"""An adapter as a worker holds it: read from its folder once, its affine edits folded into two thin products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from peft_reft.hub_format.digests import check_recorded
from peft_reft.hub_format.errors import ManifestError
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.rank import check_ranks
from peft_reft.hub_format.reader import CheckedFolder, check_folder, edit_of, unit_signatures
from peft_reft.hub_format.schema import SiteGroup, from_object
from peft_reft.interventions import Intervention, intervention_class, orthonormal_rows
from peft_reft.runtime.views import AdapterView

__all__ = ["Packed", "PackedModule", "PackedUnit", "layers_of", "read_checked", "read_packed", "view_of"]


@dataclass(frozen=True)
class PackedUnit:
    """One unit whose edit is affine, at every layer that it edits: delta(h) = Pᵀ(Mh + c).

    Attributes:
        layers: numbers of the layers, rising.
        source: M `[layers, rank, hidden]`, float32, in host memory like the others.
        bias: c `[layers, rank]`.
        projection: P `[layers, rank, hidden]`.
    """

    layers: tuple[int, ...]
    source: Tensor
    bias: Tensor
    projection: Tensor


@dataclass(frozen=True)
class PackedModule:
    """One unit at one layer whose edit is none of thin products: its module, and R where the kind has one."""

    module: Intervention
    rotation: Tensor | None

    def delta(self, hidden: Tensor) -> Tensor:
        """h′ − h `[n, hidden]`, in the precision in which the tuner computes this kind."""
        states = hidden if self.module.broadcasts else hidden.float()
        rotation = None if self.rotation is None else self.rotation.to(states.dtype)
        delta: Tensor = self.module(states, rotation)
        return delta.to(hidden.dtype)


@dataclass(frozen=True)
class Packed:
    """An adapter, ready to be served.

    Attributes:
        view: its groups and units.
        affine: unit → its thin products.
        modules: unit → layer → its module, for units with another edit.
        layers: unit → the layers that it edits.
        bytes: of its tensors in host memory.
    """

    view: AdapterView
    affine: Mapping[int, PackedUnit]
    modules: Mapping[int, Mapping[int, PackedModule]]
    layers: Mapping[int, frozenset[int]]
    bytes: int


def read_checked(folder: Path) -> CheckedFolder:
    """A folder's config and manifest after the format's checks, values and ranks included.

    Raises:
        ReftError: the folder is not what its manifest says, or holds no weights.
    """
    checked = check_folder(folder)
    if checked is None:
        raise ManifestError(
            f"{folder.name} has a config and no {WEIGHTS_NAME}",
            code="weights.missing",
            file=WEIGHTS_NAME,
            fix="save or download the adapter again",
        )
    check_ranks(folder / WEIGHTS_NAME, checked.manifest.tensors, checked.groups)
    return checked


def view_of(name: str, checked: CheckedFolder) -> AdapterView:
    """The groups of a checked adapter, and the ids of its special tokens."""
    fields = from_object(checked.config["reft"], manifest_version=checked.manifest.spec_version)
    return AdapterView(name, checked.groups, (fields["special_tokens"] or {}).get("ids", {}))


def layers_of(checked: CheckedFolder) -> dict[int, frozenset[int]]:
    """Unit → the layers that it edits, as the names of the tensors say."""
    found: dict[int, set[int]] = {}
    for name in checked.manifest.tensors:
        if (place := edit_of(name)) is not None:
            found.setdefault(place[1], set()).add(int(place[0].rpartition(".")[2]))
    return {unit: frozenset(layers) for unit, layers in sorted(found.items())}


def read_packed(folder: Path, name: str, *, device: torch.device) -> Packed:
    """Read an adapter whose config was found fit to be served; its tensors are compared with the digests again.

    Args:
        folder: of the adapter.
        name: under which it is served.
        device: where edits that are no thin products are kept; the others stay in host memory until they are needed.

    Raises:
        ReftError: the folder is not what its manifest says.
    """
    checked = read_checked(folder)
    tensors = load_file(folder / WEIGHTS_NAME)
    check_recorded({key: info.to_json() for key, info in checked.manifest.tensors.items()}, tensors.items())
    units: dict[int, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        if (place := edit_of(key)) is not None:
            site, unit, own = place
            layer = int(site.rpartition(".")[2])
            units.setdefault(unit, {}).setdefault(layer, {})[own] = tensor.to(torch.float32)
    groups = unit_signatures(checked.groups)
    affine: dict[int, PackedUnit] = {}
    modules: dict[int, dict[int, PackedModule]] = {}
    for unit, layers in sorted(units.items()):
        made = {layer: _module(groups[unit], held) for layer, held in sorted(layers.items())}
        if _is_affine(next(iter(made.values()))):
            affine[unit] = _folded(made)
        else:
            modules[unit] = {layer: _at_hand(module, device) for layer, module in made.items()}
    size = sum(tensor.numel() * 4 for tensor in tensors.values())
    return Packed(view_of(name, checked), affine, modules, layers_of(checked), size)


def _module(group: SiteGroup, tensors: Mapping[str, Tensor]) -> Intervention:
    """A unit's module with its tensors; made on the meta device, where nothing is drawn or allocated."""
    hidden = max(tensor.shape[-1] for tensor in tensors.values())
    unit = intervention_class(group.intervention)(
        hidden, group.r, act_fn=group.act_fn, options=group.options, device=torch.device("meta")
    )
    unit.load_state_dict(dict(tensors), assign=True)
    return unit.requires_grad_(False).eval()


def _at_hand(unit: Intervention, device: torch.device) -> PackedModule:
    rotation = orthonormal_rows(unit.raw_rotation()).to(device) if unit.orthonormal else None
    return PackedModule(unit.to(device), rotation)


def _is_affine(unit: Intervention) -> bool:
    """Whether a kind folds into thin products: as its own class says, and without an activation."""
    return "affine" in type(unit).__dict__ and unit.act_fn is None and not unit._buffers


def _folded(units: Mapping[int, Intervention]) -> PackedUnit:
    """The thin products of one unit at all its layers, in a few calls; computed in float64 and rounded once."""
    like = next(iter(units.values()))
    held: dict[str, Any] = {
        name: torch.stack([dict(unit.named_tensors())[name] for unit in units.values()]).double()
        for name in like.named_tensors()
    }
    rotations = [orthonormal_rows(held.pop(name)) for name in like.orthonormal]
    parts = like.affine(held, *rotations)
    source, bias, projection = (part.float().contiguous() for part in parts)
    return PackedUnit(tuple(units), source, bias, projection)
