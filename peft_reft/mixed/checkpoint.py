"""Checkpoints of mixed models: written aside and moved into place, the index last; loaded member by member."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftConfig, PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor

from peft_reft.config import ReftConfig
from peft_reft.hub_format.bundle import INDEX_NAME, REFT_FOLDER, Member, check_name, write_index
from peft_reft.hub_format.errors import AdapterLoadError, ConfigError, ManifestError
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.manifest import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from peft_reft.hub_format.staging import staged_folder
from peft_reft.hub_format.strict_json import load_json
from peft_reft.hub_format.tensors import read_tensor_table
from peft_reft.storage.beside import embedding_paths, is_grown_embedding
from peft_reft.storage.save import stage_adapter

from .opening import Bundle, open_bundle
from .parts import TwoParts

__all__ = [
    "filled",
    "load_adapter",
    "load_members",
    "save_bundle",
]


Mixed = TypeVar("Mixed", bound=TwoParts)

ENVELOPE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config")
"""Fields of a weight adapter's config that say nothing of what it computes."""


def save_bundle(
    model: TwoParts, save_directory: str, *, is_main_process: bool = True, state_dict: Any = None, **kwargs: Any
) -> None:
    """Write every adapter of the model as a bundle. All processes call it; the main one writes."""
    root = Path(save_directory)
    if not kwargs.get("safe_serialization", True) or kwargs.get("selected_adapters") is not None:
        raise ConfigError(
            "a bundle is not saved with safe_serialization=False or selected_adapters",
            value=sorted(kwargs),
            rule="it holds every adapter of the model, in safetensors",
            fix="leave these out",
        )
    kwargs.pop("selected_adapters", None)
    known = _saved(model)
    if not any(isinstance(config, ReftConfig) for config in known.values()):
        raise AdapterLoadError(
            "the model has no ReFT adapter left to save",
            code="save.members",
            rule="a bundle holds at least one ReFT beside its LoRA",
            fix="add one, or save the LoRA alone from a PeftModel",
        )
    members = [Member.at(name, str(config.peft_type.value).lower()) for name, config in known.items()]
    members.sort(
        key=lambda member: (member.kind == "reft", member.folder != ".", member.name)
    )  # not as they were made
    with staged_folder(root, install=is_main_process) as stage:
        for member in members:
            # PEFT's writer puts "default" at the root and others into <name>/
            stage_adapter(
                model,
                stage / REFT_FOLDER if member.kind == "reft" else stage,
                member.name,
                card=root / CARD_NAME,
                is_main_process=is_main_process,
                state_dict=state_dict,
                **kwargs,
            )
        if not is_main_process:
            return
        Path(stage, REFT_FOLDER, CARD_NAME).unlink(missing_ok=True)
        write_index(stage, members)


def _saved(model: TwoParts) -> dict[str, PeftConfig]:
    """The adapters that belong to a bundle: all but the copies that a reference is made of."""
    return {name: config for name, config in model.peft_config.items() if name not in model.references.names}


def load_members(model: TwoParts, bundle: Bundle, *, is_trainable: bool) -> None:
    """Load the weights of every member into the model's adapter of the same name."""
    for member in bundle.members:
        _load_member(model, member.name, bundle.root / member.folder)
        if is_trainable:
            tuner = model.edits if member.kind == "reft" else model.base_model
            tuner.set_requires_grad(member.name)


def filled(model: Mixed, bundle: Bundle, *, is_trainable: bool) -> Mixed:
    """Load every member into a model that was just made for them, and leave it as `from_pretrained` does."""
    load_members(model, bundle, is_trainable=is_trainable)
    if not is_trainable:
        model.set_adapter([member.name for member in bundle.members], inference_mode=True)
        model.eval()
    return model


def load_adapter(model: TwoParts, source: str, name: str, *, is_trainable: bool, **kwargs: Any) -> Any:
    """See `MixedReftModel.load_adapter`."""
    folder = Path(source, kwargs.get("subfolder") or "")
    if folder.is_dir():
        settle(folder)
    if (folder / INDEX_NAME).is_file():
        if name not in model.peft_config:
            raise AdapterLoadError(
                f"{source} is a bundle, and the model has no adapter {name!r}",
                code="load.members",
                rule="a bundle is loaded whole, into adapters of the names it gives",
                fix="load one member as a new adapter with subfolder='reft/<name>'",
            )
        bundle = open_bundle(str(folder), allow_patterns=True)  # the model is made: no pattern of the file is run
        stored = {member.name for member in bundle.members}
        if stored != set(_saved(model)):
            raise AdapterLoadError(
                f"the bundle holds {sorted(stored)}, the model {sorted(_saved(model))}",
                code="load.members",
                rule="a checkpoint of a mixed model is loaded whole",
                fix="make the model with the same adapters, or use MixedReftModel.from_pretrained",
            )
        load_members(model, bundle, is_trainable=is_trainable)
        if not is_trainable:
            model.eval()
        return None
    if (folder / CONFIG_NAME).is_file() and load_json(folder / CONFIG_NAME).get("peft_type") == "REFT":
        return _load_edit(model, str(folder), name, is_trainable=is_trainable)
    if folder.is_dir() and (name in model.peft_config or (folder / "reft").exists()):
        raise ManifestError(
            f"{folder} has no {INDEX_NAME}",
            code="bundle.index",
            file=INDEX_NAME,
            rule="the checkpoint of a mixed model is a bundle with an index, which is written last",
            fix="take an earlier checkpoint: this one was interrupted, or is not of a mixed model",
        )
    return PeftModel.load_adapter(model, source, name, is_trainable=is_trainable, **kwargs)


def _load_edit(model: TwoParts, source: str, name: str, *, is_trainable: bool) -> Any:
    check_name(name)
    if name not in model.peft_config:
        config = ReftConfig.from_pretrained(source)
        config.inference_mode = not is_trainable
        model.add_adapter(name, config)
    result = _load_member(model, name, Path(source))
    if is_trainable:
        model.edits.set_requires_grad(name)
    else:
        model.eval()
    return result


def _load_member(model: TwoParts, name: str, folder: Path) -> Any:
    config = model.peft_config[name]
    if isinstance(config, ReftConfig):
        stored = ReftConfig.from_pretrained(str(folder))
        if stored.to_dict()["reft"] != config.to_dict()["reft"]:
            raise AdapterLoadError(
                f"the stored config of {name!r} differs from the model's",
                code="load.config",
                rule="a checkpoint is loaded into an adapter with the same behaviour",
                fix="make the adapter from the stored config: ReftConfig.from_pretrained(folder)",
            )
        config.recorded_tensors = stored.recorded_tensors
    else:
        read_tensor_table(folder / WEIGHTS_NAME)
        _check_weight_config(model, name, folder)
    weights = load_peft_weights(str(folder), device=str(model.device))
    _check_weights(model, name, weights)
    return set_peft_model_state_dict(model, weights, adapter_name=name)


def _check_weight_config(model: TwoParts, name: str, folder: Path) -> None:
    own, stored = model.peft_config[name].to_dict(), load_json(folder / CONFIG_NAME)
    for field in sorted(own):
        plain = sorted(own[field]) if isinstance(own[field], set) else own[field]
        given = sorted(stored[field]) if isinstance(own[field], set) and stored.get(field) else stored.get(field)
        if field not in ENVELOPE and field in stored and plain != given:
            raise AdapterLoadError(
                f"the stored {field} of {name!r} is {given!r}, the model's {plain!r}"[:300],
                code="load.config",
                rule="a checkpoint is loaded into an adapter with the same behaviour",
            )


def _check_weights(model: TwoParts, name: str, weights: Mapping[str, Tensor]) -> None:
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    beside = sorted(set(weights) - set(expected))
    paths, held = embedding_paths(model), dict(model.named_parameters()) if beside else {}
    expected |= {key: held[key] for key in beside if key in held and is_grown_embedding(key, paths)}
    odd = sorted(set(expected) ^ set(weights)) or [
        key for key in expected if tuple(expected[key].shape) != tuple(weights[key].shape)
    ]
    if odd:
        raise AdapterLoadError(
            f"the tensor {odd[0][:120]!r} of adapter {name!r} is missing, has no place, or has another shape",
            code="load.fit",
            rule="every tensor of the file and every parameter of the adapter belong together",
        )
