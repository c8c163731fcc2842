"""Weighted sums: one adapter whose edit is Σ wᵢ · edit of adapter i, exactly.

A factor goes into the parameters where a kind says how (`Intervention.scaled`); what edits the same tokens of the same
sites is then one edit of concatenated rank (`Intervention.summed`), and the rest are further site groups of the new
adapter, whose edits add. Nothing is approximated: what cannot be expressed is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError, MergeError
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.interventions import Intervention, intervention_class
from peft_reft.runtime.state import ModelState

__all__ = ["WeightedSum", "weighted_sum"]

COMBINATIONS = ("cat", "linear")
BASE = ("base_model_name_or_path", "revision")

Unit = tuple[str, int]
"""A site's path, and the number of a group's unit there, counted within the group."""


@dataclass(frozen=True)
class Part:
    """One site group of the sum and its tensors at every site."""

    group: SiteGroup
    tensors: Mapping[Unit, Mapping[str, Tensor]]


@dataclass(frozen=True)
class WeightedSum:
    """A config, and what its adapter's parameters are to be, group by group."""

    config: ReftConfig
    parts: tuple[Part, ...]

    def fill(self, state: ModelState, name: str) -> None:
        """Write the parameters into the adapter `name`, which was made from the config."""
        view = state.views[name]
        with torch.no_grad():
            for number, part in enumerate(self.parts):
                for (path, offset), tensors in part.tensors.items():
                    unit = state.layers[path].unit((name, view.first_unit(number) + offset))
                    unit.train(state.model.training)  # it was made after the model's `eval()`, if that was called
                    held = unit.named_tensors()
                    for key, value in tensors.items():
                        held[key].copy_(value)


def weighted_sum(
    state: ModelState,
    configs: Mapping[str, Any],
    adapters: Sequence[str],
    weights: Sequence[float],
    *,
    combination_type: str = "cat",
) -> WeightedSum:
    """The sum of the adapters' edits as they are now, a factor of `scale_adapter` included.

    Args:
        state: of the model.
        configs: adapter name → its config.
        adapters: names.
        weights: a finite factor for each.
        combination_type: `"cat"` or `"linear"`, both names of this sum in PEFT; its other types approximate.

    Raises:
        ConfigError: a name, a weight or the type is not allowed, or the adapters' prompts or tokens differ in meaning.
        MergeError: an edit times its factor is no edit.
    """
    _check_arguments(configs, adapters, weights, combination_type)
    shared = {"task_type": _same(configs, adapters, "task_type"), **_base(configs, adapters)}
    _check_beside(configs, adapters)
    tokens = _special_tokens(configs, adapters)
    parts: list[Part] = []
    for name, weight in zip(adapters, weights, strict=True):
        for part in _parts_of(state, name, float(weight)):
            _add(parts, part, state)
    groups = [_fields(part.group) for part in parts]
    behaviour: dict[str, Any] = groups[0] if len(groups) == 1 else {"interventions": groups}
    mode = configs[adapters[0]].inference_mode  # PEFT sets it on the active adapters too when one is added
    config = ReftConfig(**shared, **behaviour, special_tokens=tokens, inference_mode=mode)
    return WeightedSum(config, tuple(parts))


def _parts_of(state: ModelState, name: str, weight: float) -> Iterator[Part]:
    """An adapter's groups, its factor folded into their tensors."""
    view = state.views[name]
    for number, group in enumerate(view.groups):
        first = view.first_unit(number)
        scaled = {
            (path, unit - first): _scaled(layer.unit((name, unit)), weight * layer.scaling[name], name)
            for path, layer in state.layers.items()
            for unit in layer.units.get(name, ())
            if first <= unit < first + group.units
        }
        kinds = {kind for kind, _ in scaled.values()}
        if len(kinds) > 1:  # a factor of 1 at some sites and another one elsewhere
            raise _no_sum(group.intervention, name)
        (kind,) = kinds
        group = replace(group, orthogonal=False)  # what R keeps out of is folded in
        if kind != group.intervention or group.options:
            group = replace(group, intervention=kind, options=group.options if kind == group.intervention else None)
        yield Part(group, {place: tensors for place, (_, tensors) in scaled.items()})


@torch.no_grad()
def _scaled(unit: Intervention, factor: float, name: str) -> tuple[str, Mapping[str, Tensor]]:
    if unit.rows is not None:
        raise ConfigError(
            f"adapter {name!r} has subspaces that are off",
            value=name,
            rule="a sum holds whole edits",
            fix=f"call set_subspaces(model, {name!r}, None) first",
        )
    if unit.capacity is not None:
        raise ConfigError(
            f"adapter {name!r} has room for another rank, of a hot-swap",
            value=name,
            rule="a sum is made of what was loaded",
            fix="load it anew with load_adapter",
        )
    exact = copy.deepcopy(unit)
    exact.fold_complement()
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if "scaled" in type(unit).__dict__ and (folded := exact.scaled(factor)) is not None:
        return folded
    if factor != 1:
        raise _no_sum(unit.kind, name)
    return unit.kind, exact.named_tensors()


def _add(parts: list[Part], part: Part, state: ModelState) -> None:
    """Join a part to one that edits the same tokens of the same sites, or let it stand by itself."""
    for number, other in enumerate(parts):
        if replace(other.group, r=1) != replace(part.group, r=1) or set(other.tensors) != set(part.tensors):
            continue
        cls = intervention_class(part.group.intervention)
        joined = {}
        for place, tensors in part.tensors.items():
            width = next(iter(tensors.values())).shape[-1]
            summed = cls.summed([other.tensors[place], tensors], width)
            if summed is None:
                break
            joined[place] = summed
        else:
            rank = other.group.r + part.group.r if part.group.signature.has_rank else part.group.r
            parts[number] = Part(replace(part.group, r=rank), joined)
            return
    parts.append(part)


def _fields(group: SiteGroup) -> dict[str, Any]:
    fields = {**asdict(group), "positions": str(group.positions)}
    del fields["orthogonal"]  # no field of a group
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _base(configs: Mapping[str, Any], adapters: Sequence[str]) -> dict[str, Any]:
    """What the adapters name as their base; PEFT notes it on the first of a model, and on none that is added later."""
    telling = [name for name in adapters if configs[name].base_model_name_or_path is not None]
    return {field: _same(configs, telling or adapters, field) for field in BASE}


def _same(configs: Mapping[str, Any], adapters: Sequence[str], field: str) -> Any:
    values = [getattr(configs[name], field) for name in adapters]
    if any(value != values[0] for value in values):
        raise ConfigError(
            f"{field} is {', '.join(f'{value!r} of {name!r}' for name, value in zip(adapters, values, strict=True))}",
            value=values,
            rule=f"the adapters of a weighted sum have one {field}",
        )
    return values[0]


def _special_tokens(configs: Mapping[str, Any], adapters: Sequence[str]) -> dict[str, Any] | None:
    """The ids of all special tokens that positions name; from one tokenizer."""
    bound = [configs[name].special_tokens for name in adapters if configs[name].special_tokens]
    if not bound:
        return None
    if any(tokens["tokenizer"] != bound[0]["tokenizer"] for tokens in bound):
        raise ConfigError(
            f"adapters={list(adapters)!r} name special tokens of different tokenizers",
            value=list(adapters),
            rule="one adapter is bound to one tokenizer",
        )
    ids = {token: number for tokens in bound for token, number in tokens["ids"].items()}
    return {"tokenizer": bound[0]["tokenizer"], "ids": ids}


def _check_beside(configs: Mapping[str, Any], adapters: Sequence[str]) -> None:
    for name in adapters:
        for field in ("modules_to_save", "trainable_token_indices"):
            if getattr(configs[name], field, None):
                raise ConfigError(
                    f"adapter {name!r} sets {field}",
                    value=getattr(configs[name], field),
                    rule="only edits have a weighted sum; modules saved in full would have to be averaged",
                )


def _check_arguments(
    configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float], combination_type: str
) -> None:
    if combination_type not in COMBINATIONS:
        raise MergeError(
            f"combination_type={combination_type!r} has no meaning for ReFT adapters",
            value=combination_type,
            rule="an edit is no weight matrix that could be decomposed or pruned",
            fix=f"leave it out, or use one of {', '.join(map(repr, COMBINATIONS))}: the exact sum of the edits",
        )
    if isinstance(adapters, str) or not adapters or len(adapters) != len(weights):
        raise ConfigError(
            f"adapters={adapters!r} with weights={weights!r}",
            value=adapters,
            rule="a list of one or more names, and a list of as many factors",
        )
    for name in adapters:
        if name not in configs:
            raise ConfigError(f"there is no adapter {name!r}", value=name, rule=f"known are: {', '.join(configs)}")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
            raise ConfigError(f"weights={list(weights)!r}: {weight!r} is not a finite number", value=weight)


def _no_sum(kind: str, name: str) -> MergeError:
    return MergeError(
        f"adapter {name!r} ({kind!r}) has no weighted sum: its edit times a factor is not one of any kind's edits",
        value=name,
        rule="a factor can go into the parameters of kinds that are linear in one of them and, but for the DiReFT "
        "kinds, have no act_fn; with the factor 1 every kind can be added",
        fix="activate the adapters together with set_adapter([...]) and scale each with scale_adapter",
    )
