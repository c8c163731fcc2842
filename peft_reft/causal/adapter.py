"""`to_adapter`: an alignment as a ReFT adapter, by which a variable is set to a value, saved and shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import CausalModelError, ConfigError
from peft_reft.interventions.rotated_interchange import RotatedInterchange
from peft_reft.layer import ReftLayer
from peft_reft.model import ReftModel
from peft_reft.runtime.evaluating import device_of, evaluating
from peft_reft.sites import can_generate

from .answers import Answers
from .dataset import Encode
from .distribution import Distribution
from .frozen import moved
from .interchange import Alignment, collect
from .model import CausalModel, Values
from .placement import Placement, placement_of, rows_of
from .site import Site

__all__ = ["to_adapter"]

MAX_INPUTS = 10_000
"""Of a causal model, run without being asked to."""


def to_adapter(
    model: nn.Module,
    causal_model: CausalModel,
    alignment: Alignment,
    *,
    encode: Encode,
    inputs: Iterable[Values] | None = None,
    row: Callable[[Values], Any] | None = None,
    positions: str | None = None,
    label: Callable[[Any], str | float | bool] | None = None,
    adapter_name: str = "default",
    batch_size: int = 256,
) -> PeftModel:
    """A `PeftModel` whose adapter sets the alignment's variables: h′ = h + R_Vᵀ(z_v − R_V h) for each variable V.

    R_V are V's rows, z_v is the point that stands for its value v: the mean of R_V s over the hidden states s of all
    inputs for which the causal model gives V the value v. So the edit is an interchange with a source at that mean. It
    moves h also where the base has the value v already, by what R_V h is away from the mean of its like; where the
    rows hold nothing but V, that is nothing. Variables are not set at first (their value is None, h keeps its bits);
    `peft_reft.set_value(model, adapter_name, "S1", 7)` sets one.

    The model is wrapped in place, as by `get_peft_model`: its own parameters no longer require gradients, and
    `unload()` undoes it. A `PeftModel` of ReFT adapters gets one more, beside the active ones.

    Args:
        model: the network, a model of transformers or like one: it has a stack of blocks and a config. Of `Answers`
            it is the model inside.
        causal_model: says which value a variable has on an input.
        alignment: variable → site, in neurons or in a `Rotation`; every site is a component of a block.
        encode: rows → a batch.
        inputs: of the causal model, to take means over; None: all that it has.
        row: inputs → row, as for `InterchangeDataset.from_pairs`; None: they are rows.
        positions: which tokens the adapter edits, in the tuner's grammar; None: the site's position. A tuple of
            positions becomes one term each, with a point of its own there; the tokens of a spec share one point.
        label: value → the text, number or boolean that stands for it in the adapter; None: itself.
        adapter_name: of the adapter.
        batch_size: inputs per forward.

    Returns:
        The model with the adapter active and no variable set.

    Raises:
        SiteError: a site that no adapter can edit; the message says why.
        CausalModelError: no variable or inputs, too many to run unasked, a variable that is not certain.
        ConfigError: values that no option can hold, or a model with adapters of another kind.
    """
    if not alignment:
        raise CausalModelError("no variable was given", code="causal.variable", rule="an adapter sets one or more")
    if isinstance(model, Answers):
        alignment = {name: _inside(site) for name, site in alignment.items()}
        model = model.model
    _check_free(model, adapter_name)

    def batch(rows: Sequence[Values]) -> Any:
        return moved(encode(rows if row is None else list(map(row, rows))), device_of(model))

    listed = list(_every(causal_model) if inputs is None else inputs)
    if not listed or batch_size < 1:
        raise CausalModelError(
            f"{len(listed)} inputs in batches of {batch_size}", code="causal.inputs", rule="one or more of both"
        )
    found = []
    with evaluating(model), torch.no_grad():
        for name, site in alignment.items():
            placement = placement_of(model, site, positions)
            groups = _by_value(causal_model, name, listed, label)
            sites = {**alignment, name: _whole(site, positions)}  # all of them: keys of columns are taken off
            means = _means(model, sites, name, list(groups.values()), batch, batch_size)
            rows = rows_of(site, means.shape[-1]).to(means)
            found.append(_Found(name, placement, list(groups), rows, _per_term(means, placement.terms) @ rows.mT))
    return _wrapped(model, found, adapter_name)


@dataclass(frozen=True)
class _Found:
    """One variable: its rows R_V `[rank, hidden]` and, for each term and value, a point `[terms, values, rank]`."""

    name: str
    placement: Placement
    values: list[Any]
    rows: Tensor
    points: Tensor

    def group(self) -> dict[str, Any]:
        """The fields of its site group."""
        return {
            "r": self.rows.shape[0],
            "intervention": RotatedInterchange.kind,
            "options": {"variable": self.name, "values": self.values, "value": None},
            **self.placement.fields(),
        }


def _wrapped(model: nn.Module, found: Sequence[_Found], adapter_name: str) -> PeftModel:
    groups = [entry.group() for entry in found]
    fields = groups[0] if len(groups) == 1 else {"interventions": groups}
    config = ReftConfig(task_type=_task(model), **fields)
    modes = {module: module.training for module in model.modules()}
    if isinstance(model, PeftModel):
        active = list(model.active_adapters)
        model.add_adapter(adapter_name, config)
        model.base_model.set_adapter([*active, adapter_name])
        wrapped: PeftModel = model
    else:
        wrapped = get_peft_model(model, config, adapter_name=adapter_name)
    for module in wrapped.modules():
        module.training = modes.get(module, model.training)
    terms = [(entry, term) for entry in found for term in range(entry.points.shape[0])]
    with torch.no_grad():
        for layer in (module for module in wrapped.modules() if isinstance(module, ReftLayer)):
            for number in layer.units.get(adapter_name, ()):
                entry, term = terms[number]
                tensors = layer.unit((adapter_name, number)).named_tensors()
                tensors["rotation"].copy_(entry.rows)
                tensors["points"].copy_(entry.points[term])
    return wrapped


def _by_value(
    causal_model: CausalModel, name: str, inputs: Sequence[Values], label: Callable[[Any], Any] | None
) -> dict[Any, list[Values]]:
    """Value, as the adapter names it → the inputs that give it; sorted where values can be compared."""
    groups: dict[Any, list[Values]] = {}
    named: dict[Any, Any] = {}
    for values in inputs:
        value = causal_model.run(values)[name]
        if isinstance(value, Distribution):
            raise CausalModelError(
                f"{name} is {value!r}",
                code="causal.value",
                value=value,
                rule="a point stands for one value, so a variable that is set is certain on every input",
            )
        value = value.item() if getattr(value, "ndim", None) == 0 else value  # a number of numpy or torch
        given = value if label is None else label(value)
        if not isinstance(given, (str, bool, int, float)):
            raise ConfigError(
                f"{name} has the value {given!r}",
                value=given,
                rule="an adapter names values by texts, numbers or booleans",
                fix="pass label=, a function from a value to its name, e.g. label=str",
            )
        if named.setdefault(given, value) != value:
            raise ConfigError(
                f"{name}: {named[given]!r} and {value!r} are both named {given!r}",
                value=given,
                rule="each value has a name of its own",
            )
        groups.setdefault(given, []).append(values)
    try:
        return {value: groups[value] for value in sorted(groups)}
    except TypeError:
        return groups


def _means(
    model: nn.Module,
    sites: Alignment,
    name: str,
    groups: Sequence[Sequence[Values]],
    encode: Encode,
    batch_size: int,
) -> Tensor:
    """The mean hidden state of each group of inputs at each position of a site, float64 `[groups, k, hidden]`.

    Where rows have different numbers of tokens there, k is 1, and the mean is over all of them.
    """
    means = []
    for group in groups:
        states = [
            collect(model, encode(group[start : start + batch_size]), sites)[name].double()
            for start in range(0, len(group), batch_size)
        ]
        even = all(state.dim() == 3 and state.shape[1] == states[0].shape[1] for state in states)
        means.append(
            torch.cat(states).mean(0) if even else torch.cat([state.flatten(0, -2) for state in states]).mean(0)[None]
        )
    if any(mean.shape != means[0].shape for mean in means):
        means = [mean.mean(0, keepdim=True) for mean in means]
    return torch.stack(means)


def _per_term(means: Tensor, terms: int) -> Tensor:
    """`[terms, groups, hidden]` of `[groups, k, hidden]`: one for each position, or one for all."""
    return means.transpose(0, 1) if means.shape[1] == terms else means.mean(1)[None]


def _whole(site: Site, positions: str | None) -> Site:
    """All of the hidden state there; at the adapter's positions where the site has none."""
    position = positions if site.position is None else site.position
    return replace(site, position=position, joint=False, units=None, space=None, mask=None)


def _inside(site: Site) -> Site:
    """A site of `Answers`, in the model that it holds."""
    return site if site.module is None else replace(site, module=site.module.removeprefix("model").removeprefix("."))


def _every(causal_model: CausalModel) -> Iterable[Values]:
    count = prod(len(values) for values in causal_model.inputs.values() if values is not None)
    if count > MAX_INPUTS:
        raise CausalModelError(
            f"the causal model has {count} inputs",
            code="causal.inputs",
            value=count,
            rule=f"at most {MAX_INPUTS} are run without being asked to",
            fix="pass inputs=causal_model.sample_inputs(count, seed=0)",
        )
    return causal_model.every_input()


def _check_free(model: nn.Module, adapter_name: str) -> None:
    if not isinstance(model, PeftModel):
        return
    if not isinstance(model.base_model, ReftModel):
        raise ConfigError(
            f"the model has adapters of type {type(model.base_model).__name__}",
            value=type(model.base_model).__name__,
            rule="a ReFT adapter is added to a plain model, or to one with ReFT adapters",
            fix="merge_and_unload() them, or search in the base model",
        )
    if adapter_name in model.peft_config:
        raise ConfigError(
            f"there is an adapter {adapter_name!r} already", value=adapter_name, fix="choose another adapter_name"
        )


def _task(model: nn.Module) -> str | None:
    if not can_generate(model):
        return None
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"
