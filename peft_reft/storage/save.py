"""`save_pretrained` that loses nothing: PEFT writes into a folder aside, which is put into place in one step."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftModel

from peft_reft.config import ReftConfig
from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import ConfigError, as_path
from peft_reft.hub_format.manifest import CARD_NAME, CONFIG_NAME
from peft_reft.hub_format.staging import staged_folder
from peft_reft.hub_format.strict_json import dump_json, load_json
from peft_reft.hub_format.writer import write_atomic

__all__ = ["check_saves", "save_pretrained", "stage_adapter"]


def check_saves(model: object) -> None:
    """Refuse what is no model of PEFT's.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(model, PeftModel):
        kind = type(model).__name__
        raise ConfigError(
            f"model is a {kind}",
            value=kind,
            rule="it is a PeftModel with ReFT adapters",
            fix="pass what get_peft_model or PeftModel.from_pretrained returned",
        )


def save_pretrained(
    model: PeftModel,
    save_directory: str | PathLike[str],
    *,
    selected_adapters: Sequence[str] | None = None,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    save_embedding_layers: str | bool = "auto",
) -> None:
    """Save a model's adapters, all of them or nothing.

    The folder is the one that PEFT's `model.save_pretrained` writes: `default` at the root, others in `<name>/`. But a
    process that is killed, or a disk that is full, leaves the adapters that were there before, or the new ones; equal
    adapters give equal bytes; and adapters of an earlier save which are not among the new ones are removed.

    Args:
        model: a `PeftModel` with ReFT adapters; a `MixedReftModel` is saved as a bundle, by its own `save_pretrained`.
        save_directory: a folder, made if it does not exist. Files that are no adapter's stay; a card gets PEFT's facts
            and keeps its text and tags.
        selected_adapters: names; None saves all.
        is_main_process: whether this process writes. All processes of a sharded run call it.
        state_dict: the weights, where they were gathered already.
        save_embedding_layers: as in PEFT.

    Raises:
        ConfigError: the model has no ReFT adapter, or a name is unknown or not allowed.
        ManifestError: the folder is a file or a link, or holds one where a file would be written.
        IntegrityError: another process keeps saving into the folder (`save.busy`).
        OSError: the folder cannot be written. It is as it was.
    """
    check_saves(model)
    save_directory = as_path(save_directory, "save_directory")
    options: dict[str, Any] = {"is_main_process": is_main_process, "save_embedding_layers": save_embedding_layers}
    if type(model).save_pretrained is not PeftModel.save_pretrained:  # a MixedReftModel, which saves a bundle
        model.save_pretrained(
            str(save_directory), state_dict=state_dict, selected_adapters=selected_adapters, **options
        )
        return
    names = _names(model, selected_adapters)
    with staged_folder(Path(save_directory), install=is_main_process) as stage:
        for name in names:
            stage_adapter(model, stage, name, card=Path(save_directory, CARD_NAME), state_dict=state_dict, **options)


def stage_adapter(
    model: PeftModel, stage: Path, name: str, *, card: Path, is_main_process: bool, **kwargs: Any
) -> None:
    """Let PEFT write one adapter into a folder.

    Args:
        model: with the adapter.
        stage: the folder; PEFT puts `default` at its root and others into `<name>/`.
        name: of the adapter.
        card: of the folder that `stage` will replace; PEFT's card takes over its text and tags.
        is_main_process: whether this process writes.
        kwargs: for PEFT's `save_pretrained`.
    """
    tags = None
    if is_main_process and card.is_file() and not card.is_symlink():
        stage.mkdir(exist_ok=True)
        shutil.copyfile(card, stage / CARD_NAME)
        tags = ModelCard.load(card).data.tags
    PeftModel.save_pretrained(model, str(stage), selected_adapters=[name], is_main_process=is_main_process, **kwargs)
    if not is_main_process:
        return
    if tags:  # PEFT sets its own in their place
        written = ModelCard.load(stage / CARD_NAME)
        written.data.tags = sorted({*tags, *(written.data.tags or [])})
        write_atomic(stage / CARD_NAME, str(written))
    config = model.peft_config[name]
    sets = [field for field, value in config.to_dict().items() if isinstance(value, set)]
    if sets and not isinstance(config, ReftConfig):  # PEFT writes them in the order of this process's hashes
        path = (stage if name == "default" else stage / name) / CONFIG_NAME
        stored = load_json(path)
        write_atomic(path, dump_json({**stored, **{field: sorted(stored[field]) for field in sets}}))


def _names(model: PeftModel, selected: Sequence[str] | None) -> list[str]:
    known = model.peft_config
    if not any(isinstance(config, ReftConfig) for config in known.values()):
        raise ConfigError("the model has no ReFT adapter", fix="use the model's own save_pretrained")
    names = sorted(known) if selected is None else sorted(dict.fromkeys(selected))
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no adapter {name!r}", value=name, rule=f"known are: {', '.join(known)}")
        check_name(name)
    if not names:
        raise ConfigError("selected_adapters is empty", value=[], fix="name at least one, or pass None for all")
    return names
