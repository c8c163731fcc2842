"""Push a saved folder to the Hub without loading it into a model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import ConfigError, as_path
from peft_reft.hub_format.listing import check_members, list_members
from peft_reft.hub_format.manifest import CARD_NAME, CONFIG_NAME, ROUTER_NAME
from peft_reft.hub_format.push import PushOptions
from peft_reft.hub_format.reader import check_link
from peft_reft.hub_format.router_file import read_router
from peft_reft.hub_format.schema import check_fields, from_object
from peft_reft.hub_format.strict_json import load_json

from .hub import check_router, push_stage

__all__ = ["push_saved"]


def push_saved(
    folder: str | Path,
    repo_id: str,
    *,
    add: bool | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Check a saved adapter or bundle and push it as one commit, with a card.

    Args:
        folder: of a ReFT, or a bundle; it is not changed.
        repo_id: e.g. `"me/my-reft"`; made if it does not exist.
        add: True: push the folder's ReFTs alone, as `reft/<name>/`, and keep every other adapter of the repository
            byte for byte. A name: as True, for a folder with one ReFT, which is added under it. False: the folder's
            adapters replace the repository's. None: as False, but refused where a folder without a LoRA would replace
            one.
        private: whether a new repository is private; refused where the repository exists and is not.
        token: as in huggingface_hub.
        revision: branch to push to.
        create_pr: open a pull request instead.
        commit_message: of the commit.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ReftError: the folder is not what its manifest or index says, or holds no ReFT; its router is none, or
            sends to an adapter that is not pushed under its name. Nothing is pushed then.
        HubError: the repository is missing, gated, or out of reach; `code` tells which.

    A path of a local base model is not pushed. A card in the folder, e.g. of `Trainer.create_model_card`, is where a
    repository without one starts. A router of skills that lies beside the adapters goes with them.
    """
    root = as_path(folder, "folder")
    names, members = check_members(root), list_members(root)
    if not any(map(_is_edit, members)):
        raise ConfigError(
            f"{root.name} holds no ReFT adapter",
            code="push.members",
            value=[member.kind for member in members],
            rule="what is pushed holds at least one ReFT",
            fix="upload other adapters with `hf upload`",
        )
    options = PushOptions(private, token, revision, create_pr, commit_message)
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary, "saved")
        for name in [*names, *(name for name in (CARD_NAME, ROUTER_NAME) if (root / name).is_file())]:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            check_link(root / name)
            shutil.copyfile(root / name, stage / name)
        edits = [member for member in members if _is_edit(member)]
        if (stage / ROUTER_NAME).is_file():
            pushed = [member.name for member in (edits if add else members)]
            check_router(read_router(stage / ROUTER_NAME).adapters, pushed, renamed=isinstance(add, str))
        configs = {member.name: load_json(stage / member.folder / CONFIG_NAME) for member in edits}
        described = {
            name: (check_fields(from_object(config["reft"])), config.get("task_type"))
            for name, config in configs.items()
        }
        return push_stage(stage, repo_id, described, options, add=add)


def _is_edit(member: Member) -> bool:
    return member.kind == "reft"
