"""A LoRA and a ReFT that were saved apart → a bundle, without a model: their files are copied, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft_reft.config import ReftConfig
from peft_reft.hub_format.bundle import Member, check_name, write_index
from peft_reft.hub_format.card import is_hub_id
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.listing import check_member, list_members
from peft_reft.hub_format.manifest import CARD_NAME, CONFIG_NAME
from peft_reft.hub_format.reader import check_link
from peft_reft.hub_format.staging import is_vacant, staged_folder
from peft_reft.hub_format.strict_json import load_json

from .checks import check_configs
from .opening import open_bundle

__all__ = ["join"]


def join(
    weights: Path, edit: Path, target: Path, *, name: str = "edit", allow_other_base: bool = False
) -> list[Member]:
    """Write a bundle of a weight adapter and a ReFT.

    Args:
        weights: folder of a LoRA as stock PEFT saves it, or a bundle, all of whose members are taken.
        edit: folder of one ReFT; of a bundle's, `<bundle>/reft/<name>`.
        target: a new folder.
        name: of the ReFT in the bundle.
        allow_other_base: whether the two may name different bases of the Hub.

    Returns:
        The members of the bundle.

    Raises:
        ReftError: a folder that cannot be such a part, a name that is taken, or a target that exists. Nothing is
            written then.
    """
    check_name(name)
    if target.is_symlink() or not is_vacant(target):
        raise ConfigError(f"{target} exists", value=str(target), rule="an existing target is not overwritten")
    opened = open_bundle(str(weights), allow_patterns=True)  # nothing is built, so no pattern is run
    if any(member.name == name for member in opened.members):
        raise ConfigError(
            f"{weights.name} holds an adapter {name!r} already",
            value=name,
            rule="the adapters of a bundle have names of their own",
            fix="choose another with --name",
        )
    found = _only_edit(edit)
    added_config = ReftConfig.from_pretrained(str(edit / found.folder), allow_other_base=True)
    check_configs({**opened.configs(is_trainable=False), name: added_config})
    if not allow_other_base:
        _check_same_base(weights, edit / found.folder)
    added = Member.at(name, "reft")
    members = sorted([*opened.members, added], key=lambda member: (member.kind == "reft", member.folder, member.name))
    with staged_folder(target) as stage:
        for member in opened.members:
            for path in member.paths():
                _copy(weights / path, stage / path)
        for path in added.paths():
            _copy(edit / found.folder / Path(path).name, stage / path)
        if (weights / CARD_NAME).is_file():
            _copy(weights / CARD_NAME, stage / CARD_NAME)
        write_index(stage, members)
    return members


def _only_edit(folder: Path) -> Member:
    members = list_members(folder)
    edits = [member for member in members if member.kind == "reft"]
    if len(members) != 1 or not edits:
        raise ConfigError(
            f"{folder.name} holds {', '.join(f'{member.name!r} ({member.kind})' for member in members)}",
            value=[member.name for member in members],
            rule="the second argument is the folder of one ReFT",
            fix="name the ReFT's own folder, in a bundle reft/<name>",
        )
    check_member(folder, edits[0])
    return edits[0]


def _check_same_base(weights: Path, edit: Path) -> None:
    bases = [load_json(folder / CONFIG_NAME).get("base_model_name_or_path") for folder in (weights, edit)]
    named = [base for base in bases if isinstance(base, str) and is_hub_id(base)]
    if len(set(named)) > 1:
        raise ConfigError(
            f"the LoRA was made for {named[0]!r}, the ReFT for {named[1]!r}",
            code="base.name",
            value=named,
            rule="the adapters of a bundle are for one base",
            fix="pass --allow-other-base if the two are the same model under two names",
        )


def _copy(source: Path, target: Path) -> None:
    check_link(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
