"""`convert`: folders of pyreft and of the adapters library → ours, and back where the target can hold it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_reft.config import ReftConfig
from peft_reft.hub_format.activations import canonical_activation
from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.errors import AdapterLoadError, ConfigError, FileFormatError, SiteError, as_path
from peft_reft.hub_format.importers import (
    Imported,
    Record,
    read_adapters,
    read_pyreft,
    write_adapters,
    write_gguf,
    write_pyreft,
)
from peft_reft.hub_format.importers.records import cannot_hold
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.keywords import explains_keywords
from peft_reft.hub_format.kinds import COMPLEMENT
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.positions import parse_positions
from peft_reft.hub_format.reader import check_folder
from peft_reft.hub_format.staging import is_vacant, staged_file, staged_folder
from peft_reft.interventions import orthonormal_rows
from peft_reft.interventions.complement import outside
from peft_reft.layer import UNIT, ReftLayer
from peft_reft.screen import progress

from .convert_base import HEADS, empty_base, task_and_head

__all__ = ["convert"]

Target = Literal["reft", "pyreft", "adapters", "gguf"]


@explains_keywords(base="base_model", model="base_model", prefix_positions="positions", suffix_positions="positions")
def convert(
    source: str | Path,
    target: str | Path,
    *,
    base_model: str | Path | None = None,
    positions: str | None = None,
    share_weights: bool | None = None,
    act_fn: str | None = None,
    intervention: str | None = None,
    to: Target = "reft",
) -> Path:
    """Convert an adapter folder of pyreft or the adapters library to our format, or one of ours to another.

    Args:
        source: the folder; what it is shows in its files.
        target: a new folder (for `to="gguf"` a file).
        base_model: id or folder of the base model, of which only `config.json` is read. Needed for an import; the task
            type follows from it.
        positions: what pyreft does not store, e.g. `"f7+l7"`. Where the source stores it, it must agree.
        share_weights: likewise; None takes what the number of interventions per layer says.
        act_fn: likewise, by any name that `ReftConfig` takes; None is no activation.
        intervention: our name of the kind, where the source does not store it: the adapters library cannot tell a
            saved DiReFT from a NoReFT.
        to: `"reft"`, `"pyreft"`, `"adapters"` or `"gguf"`.

    Long work shows a bar on a terminal: `disable_progress_bars()` of huggingface_hub switches it off.

    Returns:
        The target's path.

    Raises:
        ReftError: a source that cannot be read, a value that is missing or contradicts the source, or a target that
            cannot hold the adapter. Nothing is written then.
    """
    source, target = as_path(source, "source"), as_path(target, "target")
    if target.is_symlink() or not is_vacant(target):
        raise ConfigError(f"{target} exists", value=str(target), rule="an existing target is not overwritten")
    if to == "reft":
        if base_model is None:
            raise ConfigError(
                "convert needs base_model",
                rule="the names of its modules follow from its config.json",
                fix="name the base that the adapter was trained on, an id or a folder: base_model=…, --base-model …",
            )
        adapter = _read(source, intervention)
        said = {"positions": positions, "share_weights": share_weights, "act_fn": act_fn}
        with staged_folder(target) as stage:
            _write_reft(_with_said(adapter, said), stage, str(base_model))
        return target
    if to not in ("pyreft", "adapters", "gguf"):
        raise ConfigError(f"to={to!r}", value=to, rule="it is 'reft', 'pyreft', 'adapters' or 'gguf'")
    adapter, base = _read_reft(source)
    hidden, streams = int(base.get("hidden_size") or 0), int(base.get("streams") or 1)
    widest = max(tensor.shape[-1] for record in adapter.records for tensor in record.tensors.values() if tensor.dim())
    if streams > 1 and widest == hidden * streams:
        hidden = widest  # a token's state has the numbers of all streams
        if to == "gguf":
            raise cannot_hold(
                "a control vector", f"{streams} residual streams", "it has one vector of the hidden size"
            )
    if to == "gguf":
        with staged_file(target) as stage:
            write_gguf(adapter, stage, model_type=str(base.get("model_type") or ""))
        return target
    with staged_folder(target) as stage:
        if to == "pyreft":
            write_pyreft(adapter, stage, hidden=hidden, watch=_watched)
        else:
            write_adapters(adapter, stage, hidden=hidden, base_model=base, watch=_watched)
    return target


def _read(source: Path, intervention: str | None) -> Imported:
    if (source / "adapter_config.json").is_file():
        return read_adapters(source, kind=intervention, watch=_watched)
    if not any(source.glob("intkey_*.bin")):
        raise FileFormatError(
            f"{source.name} is no folder of pyreft (config.json, intkey_*.bin) or adapters (adapter_config.json)",
            code="import.unknown",
            value=str(source),
        )
    adapter = read_pyreft(source, kind=intervention, watch=_watched)
    if intervention not in (None, adapter.kind):
        raise ConfigError(f"intervention={intervention!r}, and the folder holds a {adapter.kind}", value=intervention)
    return adapter


def _with_said(adapter: Imported, said: dict[str, Any]) -> Imported:
    """The adapter with what the caller says of it, where the source does not say otherwise."""
    for name, value in said.items():
        known = getattr(adapter, name)
        given = _canonical(name, value)
        if value is not None and (name in adapter.stored or known is not None) and given != known:
            raise ConfigError(f"{name}={value!r}, and the source has {known!r}", value=value, fix=f"leave {name} out")
    positions = adapter.positions or said["positions"]
    if positions is None:
        raise ConfigError("convert needs positions", rule="pyreft does not store them", fix="e.g. positions='f7+l7'")
    terms = len(parse_positions(positions).terms)
    share = adapter.share_weights
    if share is None:  # one intervention per site: tied, or one term
        share = True if said["share_weights"] is None else said["share_weights"]
    if not share and terms != len({record.term for record in adapter.records}):
        raise ConfigError(
            f"positions={positions!r} has {terms} terms, and the source one intervention per layer for "
            f"{len({record.term for record in adapter.records})}",
            value=positions,
            rule="without shared weights each term has its own intervention",
        )
    act_fn = adapter.act_fn if "act_fn" in adapter.stored else said["act_fn"]
    return replace(adapter, positions=positions, share_weights=share, act_fn=act_fn)


def _canonical(name: str, value: Any) -> Any:
    """A value that the caller says, in the words of a file."""
    if value is None or name not in ("positions", "act_fn"):
        return value
    return str(parse_positions(value)) if name == "positions" else canonical_activation(value)


def _write_reft(adapter: Imported, target: Path, base_model: str) -> None:
    base = empty_base(base_model)
    task, head = task_and_head(base, adapter, base_model)
    layers = sorted({record.layer for record in adapter.records})
    components = {record.component for record in adapter.records}
    if len(components) > 1:
        raise FileFormatError(f"the source edits several components: {sorted(components)}", code="import.components")
    config = ReftConfig(
        task_type=task,
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=adapter.rank,
        intervention=adapter.kind,
        options=dict(adapter.options) or None,
        layers_to_transform=layers,
        component=components.pop(),
        positions=adapter.positions or "",  # both are known from `_with_said` on
        share_weights=adapter.share_weights is not False,
        act_fn=adapter.act_fn,
        dropout=adapter.dropout or 0.0,
    )
    inject_adapter_in_model(config, base, "default")
    given = {(record.stack, record.layer, record.term): record.tensors for record in adapter.records}
    tensors: dict[str, Tensor] = {}
    for path, layer in base.named_modules():
        if isinstance(layer, ReftLayer):
            block = int(layer.path.removeprefix(layer.stack).split(".")[1])
            for unit in layer.units["default"]:
                found = given.pop((layer.stack, block, unit), None) or given.pop((None, block, unit), None)
                if found is None:
                    raise FileFormatError(f"the source has no intervention for {layer.path}", code="import.missing")
                expected = {n: tuple(t.shape) for n, t in layer.unit(("default", unit)).named_tensors().items()}
                if {name: tuple(tensor.shape) for name, tensor in found.items()} != expected:
                    raise _unfit(layer.path, {n: list(t.shape) for n, t in found.items()}, expected)
                tensors |= {f"{MODEL_PREFIX}{path}.{UNIT}{unit}.{n}": t.contiguous() for n, t in found.items()}
    if given:
        raise SiteError(
            f"the source edits {sorted(map(str, given))[0]}, which the base model has not", code="site.layer"
        )
    if head:
        config.modules_to_save = list(HEADS)
    tensors |= {f"{MODEL_PREFIX}{name}": tensor.contiguous() for name, tensor in head.items()}
    save_file(tensors, target / WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(target))


def _read_reft(source: Path) -> tuple[Imported, dict[str, Any]]:
    """One of our folders as records, R in place of its raw parameter."""
    settle(source)
    checked = check_folder(source)
    if checked is None or not (source / WEIGHTS_NAME).is_file():
        raise FileFormatError(f"{source.name} holds no {WEIGHTS_NAME}", code="export.weights", value=str(source))
    if len(checked.groups) != 1:
        raise cannot_hold("the target", "several groups of interventions", "it has one kind, rank and component")
    (group,), base = checked.groups, dict(checked.manifest.base_model)
    base["name"] = checked.config.get("base_model_name_or_path")
    stacks = base.get("stacks") or {}
    units: dict[tuple[str, int, int], dict[str, Tensor]] = {}
    stored = load_file(source / WEIGHTS_NAME)
    for name, tensor in _watched(stored.items()):
        site, _, rest = name.removeprefix(MODEL_PREFIX).rpartition(f".{UNIT}")
        stack = next((path for path in stacks if site.startswith(f"{path}.")), None)
        if set(name.split(".")) & set(HEADS):
            continue  # the task's head: the other formats keep it elsewhere
        if stack is None or not site.endswith(".reft"):
            raise cannot_hold("the target", f"the tensor {name!r}", "it holds interventions in the stacks of the base")
        block = int(site.removeprefix(f"{stack}.").split(".")[0])
        number, _, tensor_name = rest.partition(".")
        if tensor_name == COMPLEMENT:
            continue  # folded into R
        whole = tensor
        if tensor_name in group.signature.orthonormal:
            taken = stored.get(f"{name.rpartition('.')[0]}.{COMPLEMENT}")
            whole = orthonormal_rows(tensor if taken is None else outside(tensor, taken)).to(torch.float32)
        units.setdefault((stack, block, int(number)), {})[tensor_name] = whole
    records = tuple(Record(block, group.component, n, tensors, stack) for (stack, block, n), tensors in units.items())
    imported = Imported(
        group.intervention,
        group.r,
        records,
        positions=str(group.positions),
        share_weights=group.share_weights,
        act_fn=group.act_fn,
        dropout=group.dropout,
        options=group.signature.with_defaults(group.options or {}),
    )
    return imported, base


def _watched(items: Collection[Any]) -> Iterable[Any]:
    return progress(items, "convert", unit="tensor")


def _unfit(path: str, found: object, expected: object) -> AdapterLoadError:
    return AdapterLoadError(
        f"the source's tensors for {path} are {found}",
        code="load.fit",
        rule=f"the base model needs {expected}",
        fix="name the base model that the adapter was trained on",
    )
