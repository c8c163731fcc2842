"""Push, pull and list: one commit with a parent and a card that tells how to use it, one revision on the way back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from peft import PeftModel

from peft_reft.config import ReftConfig
from peft_reft.hub_format.bundle import REFT_FOLDER, Member, check_name, read_index, write_index
from peft_reft.hub_format.card import CardFacts, is_hub_id
from peft_reft.hub_format.errors import ConfigError, as_path, shown
from peft_reft.hub_format.listing import check_members, list_members
from peft_reft.hub_format.manifest import CARD_NAME, CONFIG_NAME, MANIFEST_NAME, ROUTER_NAME, WEIGHTS_NAME, Manifest
from peft_reft.hub_format.push import PushOptions, describe, push_folder
from peft_reft.hub_format.remote import fetch_folder, fetch_listing
from peft_reft.hub_format.router_file import read_router
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.staging import staged_folder
from peft_reft.hub_format.strict_json import dump_json, load_json
from peft_reft.hub_format.writer import producer, write_adapter_files, write_atomic
from peft_reft.runtime.row_choice import BASE

from .save import check_saves

__all__ = ["Router", "check_router", "list_adapters", "pull", "push_stage", "push_to_hub"]


@runtime_checkable
class Router(Protocol):
    """What lies beside adapters and says which of them a prompt goes to; `peft_reft.continual.SkillRouter` is one."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of adapters."""

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Write `skill_router.safetensors`."""


def list_adapters(
    repo_or_folder: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> list[Member]:
    """The adapters of a folder or Hub repository, without fetching or checking any weights.

    Args:
        repo_or_folder: a folder where one of that name exists, else a repository, e.g. `"me/my-reft"`.
        revision: branch, tag, commit or `refs/pr/<number>` of the repository.
        token: as in huggingface_hub.

    Returns:
        Name, kind and folder of each adapter: as the index of a bundle gives them, else the one at the root
        (`"default"`) and those in folders of their own, in alphabetical order.

    Raises:
        HubError: the repository is missing, gated, or out of reach; `code` tells which.
        ManifestError: there is no adapter, or the index is malformed.
    """
    folder = as_path(repo_or_folder, "repo_or_folder")
    if folder.exists():
        return list_members(folder)
    return list_members(fetch_listing(str(repo_or_folder), revision=revision, token=token))


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Bring the adapters of a repository, with card and router, into a folder, all from one commit, checked before.

    Args:
        repo_id: e.g. `"me/my-reft"`.
        folder: made if it does not exist; adapters that it holds already are replaced, with a router that sends to
            some which do not come.
        revision: branch, tag, commit or `refs/pr/<number>`.
        token: as in huggingface_hub.

    Returns:
        The folder.

    Raises:
        HubError: the repository is missing, gated, or out of reach; `code` tells which.
        ReftError: its files are not what their manifest or index says; the folder is as it was.
    """
    target = as_path(folder, "folder")
    source = fetch_folder(repo_id, revision=revision, token=token)
    beside = [name for name in (CARD_NAME, ROUTER_NAME) if (source / name).is_file()]
    names = [*check_members(source), *beside]
    if ROUTER_NAME in beside:
        read_router(source / ROUTER_NAME)
    with staged_folder(target) as stage:
        for name in names:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, stage / name)
    return target


def push_to_hub(
    model: PeftModel,
    repo_id: str,
    *,
    add: bool | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    router: Router | None = None,
) -> str:
    """Push a model's adapters to the Hub as one commit, with a card.

    The commit is made on top of the one that was looked at. If someone else pushes meanwhile, it is made again on top
    of theirs, unless they changed the adapters that it would replace: then nothing is pushed, and you are told.

    Args:
        model: a `PeftModel` with ReFT adapters, or a `MixedReftModel`.
        repo_id: e.g. `"me/my-reft"`; made if it does not exist.
        add: True: write the model's ReFTs alone, as `reft/<name>/`, and keep every other adapter of the repository
            byte for byte. A name: as True, for a model with one ReFT, which is added under it. False: the model's
            adapters replace the repository's, whose files are deleted in the same commit. None: as False, but refused
            where a model without a LoRA would replace one.
        private: whether a new repository is private; refused where the repository exists and is not.
        token: as in huggingface_hub.
        revision: branch to push to; made if it does not exist.
        create_pr: open a pull request instead.
        commit_message: of the commit.
        router: a `SkillRouter` over the model's adapters, to lie beside them as `skill_router.safetensors`. Without
            one, a router that the repository has goes with the adapters that are replaced, and stays with `add`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ConfigError: the model has no ReFT, or the router sends to an adapter that is not pushed under its name.
        HubError: someone else changed the same adapters (`hub.conflict`), the repository holds a LoRA
            (`hub.occupied`), or what else `code` tells.

    A path of a local base model is not pushed.
    """
    check_saves(model)
    edits = {name: config for name, config in model.peft_config.items() if isinstance(config, ReftConfig)}
    if not edits:
        raise ConfigError("the model has no ReFT adapter", fix="use the model's own push_to_hub")
    if router is not None:
        if not isinstance(router, Router):
            raise ConfigError(f"router is {shown(router)}", value=router, rule="it is a SkillRouter")
        check_router(router.adapters, edits if add else model.peft_config, renamed=isinstance(add, str))
    options = PushOptions(private, token, revision, create_pr, commit_message)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "saved")
        model.save_pretrained(str(folder))
        if router is not None:
            router.save_pretrained(folder)
            read_router(folder / ROUTER_NAME)
        described = {name: (config.groups(), config.task_type) for name, config in edits.items()}
        return push_stage(folder, repo_id, described, options, add=add)


def check_router(adapters: Iterable[str], pushed: Collection[str], *, renamed: bool) -> None:
    """Refuse a router that sends to what does not come to lie beside it under the name it knows."""
    lost = [name for name in adapters if name != BASE and (renamed or name not in pushed)]
    if lost:
        raise ConfigError(
            f"the router sends to {lost[0]!r}, which is not pushed under that name",
            value=lost,
            rule=f"it sends to adapters of the same push: {', '.join(map(repr, pushed))}",
            fix="push the model with all its adapters, under their own names (add=True, or without add), or no router",
        )


def push_stage(
    stage: Path,
    repo_id: str,
    edits: Mapping[str, tuple[Sequence[SiteGroup], Any]],
    options: PushOptions,
    *,
    add: bool | str | None,
) -> str:
    """Push adapters that stand saved in a folder of the push's own; see `push_to_hub`.

    Args:
        stage: the folder, in a temporary one. It is changed: no path of a local base is left in it.
        repo_id: e.g. `"me/my-reft"`.
        edits: of its ReFTs, name → site groups and task type.
        options: of the commit.
        add: as in `push_to_hub`.
    """
    base, members = _remove_local_base(stage), list_members(stage)
    names = {name: name for name in edits}
    if add:
        names = _names_to_add(edits, add)
        stage, members = _edits_alone(stage, stage.with_name("added"), names)
    facts = CardFacts(
        repo_id=repo_id,
        base_model=base,
        members=members,
        edits=[describe(names[name], groups) for name, (groups, _) in edits.items()],
        language_model=any(str(task).endswith("CAUSAL_LM") for _, task in edits.values()),
    )
    return push_folder(stage, facts, options, add=bool(add), replace_weights=add is False)


def _names_to_add(edits: Mapping[str, object], add: bool | str) -> dict[str, str]:
    """Own name → name in the repository of the ReFTs that a push adds; see `push_to_hub` for `add`."""
    if not isinstance(add, str):
        return {name: name for name in edits}
    check_name(add)
    if len(edits) != 1:
        raise ConfigError(
            f"add={add!r} names one adapter, and the model has {len(edits)} ReFTs",
            value=sorted(edits),
            fix="use add=True, which takes their own names",
        )
    return dict.fromkeys(edits, add)


def _edits_alone(saved: Path, target: Path, names: Mapping[str, str]) -> tuple[Path, list[Member]]:
    """A folder with `reft/<name>/` of the saved ReFTs, their router, and nothing else."""
    for own, name in names.items():
        places = (saved / REFT_FOLDER / own, saved / own, saved)
        source = next(place for place in places if (place / MANIFEST_NAME).is_file())
        (target / REFT_FOLDER / name).mkdir(parents=True)
        for file in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME):
            shutil.copyfile(source / file, target / REFT_FOLDER / name / file)
    if (saved / ROUTER_NAME).is_file():
        shutil.copyfile(saved / ROUTER_NAME, target / ROUTER_NAME)
    return target, [Member.at(name, "reft") for name in names.values()]


def _remove_local_base(folder: Path) -> str | None:
    """Take local base paths out of every config; returns the base's Hub id where there is one."""
    base = None
    members = read_index(folder)  # before the configs change, which its digests describe
    for path in sorted(folder.rglob(CONFIG_NAME)):
        config = load_json(path)
        named = config.get("base_model_name_or_path")
        if isinstance(named, str) and is_hub_id(named):
            base = named
            continue
        config["base_model_name_or_path"] = None
        _rewrite(path, config)
    if members is not None:
        write_index(folder, members)
    return base


def _rewrite(path: Path, config: Mapping[str, Any]) -> None:
    if not (path.parent / MANIFEST_NAME).is_file():
        write_atomic(path, dump_json(dict(config)))
        return
    manifest = Manifest.load(path.parent / MANIFEST_NAME)
    stored = {**config, "reft": {name: value for name, value in config["reft"].items() if name != "tensors"}}
    write_adapter_files(path.parent, stored, base_model=manifest.base_model, producer=producer())
