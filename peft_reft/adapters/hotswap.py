"""Another adapter's tensors in the place of one on the model: no module, hook, parameter or compiled graph changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import _insert_adapter_name_into_state_dict, load_peft_weights
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.interventions import Intervention
from peft_reft.layer import ReftLayer
from peft_reft.lookup import layers_of, units_of
from peft_reft.runtime.views import AdapterView
from peft_reft.storage.identity import check_base
from peft_reft.storage.loading import check_state_dict
from peft_reft.storage.places import layers_in

from .refusals import refuse_first_meaning
from .stacking import stacks_of

__all__ = ["hotswap_adapter", "prepare_for_hotswap"]


def prepare_for_hotswap(model: nn.Module, *, target_rank: int, adapter_name: str = "default") -> None:
    """Make room in an adapter for others of a higher rank, before the model is compiled.

    Its tensors get rows of zeros, which are computed with and add nothing, exactly. They are not saved. Not needed
    where the first adapter has the highest rank.

    Args:
        model: with the adapter.
        target_rank: the highest rank of the adapters to come.
        adapter_name: of the adapter.

    Raises:
        ConfigError: the adapter is not there, its rank is higher, its kind cannot be padded, or the model is compiled.
    """
    if hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules()):
        raise _refuse(
            "prepare_for_hotswap of a compiled model",
            None,
            "it replaces parameters, which a graph has taken",
            "call it before torch.compile",
        )
    units = list(units_of(layers_of(model, adapter_name, code="hotswap")[0].state, adapter_name))
    for unit in units:
        _check_pads(unit, target_rank, "target_rank")
    for unit in units:
        if unit.ranked and (unit.capacity or unit.rank) < target_rank:
            unit.reserve(target_rank)


def hotswap_adapter(
    model: nn.Module, model_name_or_path: str, adapter_name: str, torch_device: str | None = None, **kwargs: Any
) -> None:
    """Replace an adapter by the one in a folder or Hub repository; signature of `peft.utils.hotswap.hotswap_adapter`.

    The adapter keeps its name and its place; its factor is 1 again. The two must agree in everything but their
    tensors, dropout and rank; a lower rank is padded with zeros where the kind allows it. Nothing has changed when an
    error is raised.

    Args:
        model: with the adapter; compiled or not.
        model_name_or_path: where the new one was saved.
        adapter_name: whose tensors are replaced.
        torch_device: for PEFT's signature; tensors go to where the old ones are.
        kwargs: `subfolder`, `revision`, `token`, …, and `allow_other_base`, as in `ReftConfig.from_pretrained`.

    Raises:
        ConfigError: the adapters differ in kind, positions, sites or options, or the rank does not fit.
        ReftError: the folder is not what its manifest says, or its tensors do not fit.
    """
    model = getattr(model, "_orig_mod", model)
    layers = layers_of(model, adapter_name, code="hotswap")
    state = layers[0].state
    configs: dict[str, Any] = model.peft_config  # type: ignore[assignment]  # an attribute of PEFT's models
    config = ReftConfig.from_pretrained(model_name_or_path, **kwargs)
    _check_alike(configs[adapter_name], config)
    if config.recorded_base is not None:
        check_base(config.recorded_base, state.model)
    ranks = [group.r for group in config.groups() for _ in range(group.units)]
    for layer in layers:
        for number in layer.units[adapter_name]:
            unit = layer.unit((adapter_name, number))
            if unit.ranked and ranks[number] != (unit.capacity or unit.rank):
                _check_pads(unit, ranks[number], "r", swapped=True)
    told = {name: value for name, value in kwargs.items() if name != "allow_other_base"}
    stored = load_peft_weights(model_name_or_path, device="cpu", **told)
    tensors = _insert_adapter_name_into_state_dict(stored, adapter_name=adapter_name, parameter_prefix="reft_")
    if not isinstance(model, PeftModel):
        tensors = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in tensors.items()}
    check_state_dict(model, config, adapter_name, stored, tensors, ranks=ranks)
    _write(model, adapter_name, tensors, ranks)
    for number, group in enumerate(config.groups()):
        _set_dropout(layers, adapter_name, state.views[adapter_name].first_unit(number), group)
    for layer in layers:
        layer.scaling[adapter_name] = 1.0
    configs[adapter_name] = _in_place_of(configs[adapter_name], config)
    ids = (config.special_tokens or {}).get("ids", {})
    state.views[adapter_name] = AdapterView(adapter_name, config.groups(), ids)
    state.unverified.pop(adapter_name, None)
    stacks_of(state).drop(adapter_name)
    state.changed()


@torch.no_grad()
def _write(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor], ranks: list[int]) -> None:
    for path, layer in layers_in(model):
        for number in layer.units.get(adapter_name, ()):
            unit = layer.unit((adapter_name, number))
            if unit.ranked and ranks[number] != unit.rank:
                unit.capacity = unit.capacity or unit.rank
                unit.rank = ranks[number]
            for name, held in unit.named_tensors().items():
                value = tensors[f"{path}.reft_{number}.{adapter_name}.{name}"]
                if unit.is_ranked(name):
                    held[len(value) :] = 0
                    held[: len(value)] = value.to(held.device, held.dtype)
                else:
                    held.copy_(value)


def _set_dropout(layers: list[ReftLayer], adapter_name: str, first: int, group: SiteGroup) -> None:
    for layer in layers:
        for number in layer.units[adapter_name]:
            if first <= number < first + group.units:
                layer.unit((adapter_name, number)).set_dropout(group.dropout)


def _check_alike(held: Any, config: ReftConfig) -> None:
    """Refuse an adapter that would need another graph, or other modules, than the one whose place it takes."""
    if not isinstance(held, ReftConfig):
        raise _refuse(
            f"a {type(held).__name__} is to be replaced by a ReftConfig",
            type(held).__name__,
            "one ReFT takes the place of another",
            "use peft.utils.hotswap for a LoRA",
        )
    old, new = held.groups(), config.groups()
    if len(old) != len(new):
        raise _differs("interventions", len(old), len(new))
    for before, after in zip(old, new, strict=True):
        first, second = vars(_without_room(before)), vars(_without_room(after))
        for name in (name for name in first if first[name] != second[name]):
            raise _differs(name, first[name], second[name])
    for name in ("orthogonal_to", "subspaces", "special_tokens", "task_type"):
        if getattr(held, name) != getattr(config, name):
            raise _differs(name, getattr(held, name), getattr(config, name))
    if held.modules_to_save or config.modules_to_save:
        raise _refuse(
            "hot-swap of an adapter with modules_to_save",
            held.modules_to_save or config.modules_to_save,
            "modules that are saved in full are PEFT's and are not swapped",
            "load it as a second adapter and call set_adapter",
        )


def _without_room(group: SiteGroup) -> SiteGroup:
    """A group without what may differ: rank, where there is room; dropout; how its layers are written down."""
    return replace(group, r=0, dropout=0.0, layers_to_transform=None)


def _check_pads(unit: Intervention, rank: int, name: str, *, swapped: bool = False) -> None:
    """Whether a unit can hold another rank than its own, in rows of zeros."""
    room = unit.capacity or unit.rank
    if not unit.ranked:
        return
    if not type(unit).__dict__.get("pads", False):
        raise _refuse(
            f"{name}={rank} for a {unit.kind!r} of rank {unit.rank}",
            rank,
            f"rows of zeros in a {unit.kind!r} are not known to add nothing to its edit",
            "swap adapters of the same rank",
        )
    if swapped and rank > room:
        raise _refuse(
            f"an adapter of rank {rank} in the place of one of rank {room}",
            rank,
            "a higher rank needs larger parameters, and so another graph",
            f"call prepare_for_hotswap(model, target_rank={rank}) before the model is compiled",
        )
    if not swapped and not unit.rank <= rank <= unit.hidden_size:
        raise _refuse(
            f"{name}={rank}",
            rank,
            f"it lies between the adapter's rank and the hidden size: {unit.rank} to {unit.hidden_size}",
            "pass the highest rank of the adapters to come",
        )


def _in_place_of(held: ReftConfig, config: ReftConfig) -> ReftConfig:
    """The new config with what a model knows of the old one.

    Raises:
        SiteError: a file in whose version a component is another in this model.
    """
    refuse_first_meaning(config.recorded_version, held.moved)
    for name in ("target_modules", "moved", "base_identity", "base_tokenizer", "inference_mode"):
        setattr(config, name, getattr(held, name))
    return config


def _differs(name: str, held: object, given: object) -> ConfigError:
    return _refuse(
        f"hot-swap between {name}={str(held)[:80]!r} and {str(given)[:80]!r}",
        given,
        "adapters that take each other's place differ in their tensors, dropout and rank alone",
        "load it as a second adapter (load_adapter) and switch with set_adapter",
    )


def _refuse(what: str, value: object, rule: str, fix: str | None = None) -> ConfigError:
    return ConfigError(what, code="hotswap", value=value, rule=rule, fix=fix)
