"""A folder or repository as the front opens it: one ReFT, alone or beside a LoRA, after every check there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.listing import list_members
from peft_reft.hub_format.opening import open_source
from peft_reft.hub_format.reader import CheckedFolder, check_link
from peft_reft.hub_format.weight_member import check_weight_member

from .packed import read_checked

__all__ = ["Opened", "open_adapter"]


@dataclass(frozen=True)
class Opened:
    """What is served under one name.

    Attributes:
        folder: of the ReFT.
        checked: its config and manifest.
        lora: folder of the LoRA that belongs to it, in a bundle that has one.
    """

    folder: Path
    checked: CheckedFolder
    lora: Path | None


def open_adapter(source: str, *, revision: str | None = None, token: str | None = None) -> Opened:
    """Open a folder where one of that name exists, else a repository, at one commit.

    Raises:
        ReftError: it holds no ReFT or several, a weight adapter that is no LoRA, or files that are not what manifest,
            index or format say.
        HubError: the repository is missing, gated or out of reach.
    """
    root = open_source(source, revision=revision, token=token)
    members = list_members(root)
    edits = [member for member in members if member.kind == "reft"]
    weights = [member for member in members if member.kind != "reft"]
    if len(edits) != 1:
        raise _refuse(source, members, "one name serves one ReFT", "name the folder of one, e.g. PATH/reft/NAME")
    if len(weights) > 1 or any(member.kind != "lora" for member in weights):
        raise _refuse(source, members, "beside the ReFT of a bundle stands one LoRA or nothing", "make such a bundle")
    for member in members:
        check_link(root / member.folder)
    folder = root / edits[0].folder
    checked = read_checked(folder)
    lora = None
    if weights:
        lora = root / weights[0].folder
        check_weight_member(lora)
    return Opened(folder.resolve(), checked, None if lora is None else lora.resolve())


def _refuse(source: str, members: list[Member], rule: str, fix: str) -> ConfigError:
    found = ", ".join(f"{member.name} ({member.kind})" for member in members)
    return ConfigError(f"{source[:120]!r} holds {found}", code="vllm.members", value=found, rule=rule, fix=fix)
