"""A push: one commit, made on top of the revision that was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from .bundle import INDEX_NAME, REFT_FOLDER, Member, index_text, read_index_entries
from .card import CardFacts, updated_card
from .errors import HubError, IntegrityError, ManifestError, ReftError
from .listing import list_members
from .manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLE_NAME,
    ROUTER_NAME,
    WEIGHTS_NAME,
    FileInfo,
    describe_file,
)
from .remote import fetch_listing, hub_errors
from .schema import SiteGroup, check_fields, from_object
from .strict_json import load_json

__all__ = ["PushOptions", "describe", "push_folder"]

ATTEMPTS = 5
ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, MANIFEST_NAME, INDEX_NAME, ROUTER_NAME)


@dataclass(frozen=True)
class PushOptions:
    """Where and how to push; the fields are those of `peft_reft.push_to_hub`."""

    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None


@dataclass(frozen=True)
class _Remote:
    """A repository at one commit: its files, and the adapters they make."""

    repo_id: str
    commit: str
    files: Mapping[str, RepoFile]
    listing: Path | None
    members: Sequence[Member]
    token: str | bool | None

    def fetch(self, path: str) -> Path:
        return Path(hf_hub_download(self.repo_id, path, revision=self.commit, token=self.token))

    def told(self, path: str) -> Path:
        """Where a config or the index lies, which say what adapters there are; of a repository that has some."""
        if self.listing is None:
            raise ManifestError(f"{self.repo_id} holds no adapter", code="adapter.missing")
        return self.listing / path

    def state(self, folders: Sequence[str] | None = None) -> dict[str, str]:
        """Path → blob of every adapter file, or of those directly in `folders`."""
        return {
            path: file.blob_id
            for path, file in self.files.items()
            if Path(path).name in ADAPTER_FILES and (folders is None or str(Path(path).parent) in folders)
        }

    def describe(self, path: str) -> FileInfo:
        """Size and digest of a file, without fetching it where the Hub knows its digest."""
        file = self.files.get(path)
        if file is None:
            raise ManifestError(
                f"{self.repo_id} has no {path}", code="weights.missing", fix="save that adapter in safetensors"
            )
        if file.lfs is not None:
            return FileInfo(path, file.size, file.lfs.sha256)
        found = describe_file(self.fetch(path).parent, Path(path).name)
        return FileInfo(path, found.size, found.sha256)


def push_folder(folder: Path, facts: CardFacts, options: PushOptions, *, add: bool, replace_weights: bool) -> str:
    """Push a folder's files and an updated card as one commit; returns the commit's URL.

    The commit names its parent. Where someone else's commit came in between, ours is made again on top of theirs, a
    bounded number of times, unless theirs changed the adapters that ours would replace.

    Args:
        folder: adapters as they are to lie in the repository; with `add`, `reft/<name>/` alone.
        facts: for the card.
        options: where and how.
        add: keep the repository's other adapters, and extend its index, instead of replacing them.
        replace_weights: a folder of ReFTs alone may replace a repository's LoRAs.

    Raises:
        HubError: someone else changed the same adapters meanwhile (`hub.conflict`), or too often (`hub.busy`); the
            repository's visibility is not the one asked for (`hub.private`); its adapters cannot be added to
            (`hub.layout`); it is missing or gated.
        IntegrityError: the folder holds a link.
    """
    api = HfApi(token=options.token)
    with hub_errors(facts.repo_id, options.revision):
        repo_id = _made(api, facts.repo_id, options)
        seen: dict[str, str] | None = None
        for _ in range(ATTEMPTS):
            remote = _look(api, repo_id, options, repair=replace_weights)
            ours = [member.folder for member in facts.members] if add else None
            if seen is not None and remote.state(ours) != seen:
                raise HubError(
                    f"someone else changed the adapters of {repo_id} during this push",
                    code="hub.conflict",
                    value=repo_id,
                    rule="nothing that was pushed meanwhile is replaced unseen",
                    fix="look at their commit, then push again",
                )
            seen = remote.state(ours)
            if not (add or replace_weights):
                _refuse_loss(facts, remote)
            try:
                commit = api.create_commit(
                    repo_id,
                    _operations(folder, facts, remote, add=add),
                    commit_message=options.commit_message or "Upload ReFT adapter",
                    revision=options.revision,
                    create_pr=options.create_pr,
                    parent_commit=None if options.create_pr else remote.commit,
                )
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 412:
                    raise
                continue
            return str(commit.pr_url or commit.commit_url)
    raise HubError(
        f"{repo_id} changed during each of {ATTEMPTS} attempts",
        code="hub.busy",
        value=repo_id,
        fix="push again, or with create_pr=True",
    )


def describe(name: str, groups: Sequence[SiteGroup]) -> str:
    """One line on what an adapter edits."""
    parts = [
        f"{group.intervention}, rank {group.r}, positions {group.positions}, "
        + ("all layers" if group.layers_to_transform is None else f"layers {list(group.layers_to_transform)}")
        for group in groups
    ]
    return f"`{name}`: " + "; ".join(parts)


def _made(api: HfApi, repo_id: str, options: PushOptions) -> str:
    found = str(api.create_repo(repo_id, private=options.private, exist_ok=True).repo_id)
    if options.private is not None and api.model_info(found).private is not options.private:
        raise HubError(
            f"{found} exists and is {'public' if options.private else 'private'}",
            code="hub.private",
            value=options.private,
            rule="private= is of a repository that the push makes; it does not change one that exists",
            fix="change it in the repository's settings, or choose another name",
        )
    if options.revision is not None and not options.revision.startswith("refs/"):
        api.create_branch(found, branch=options.revision, exist_ok=True)
    return found


def _look(api: HfApi, repo_id: str, options: PushOptions, *, repair: bool) -> _Remote:
    commit = str(api.model_info(repo_id, revision=options.revision).sha)
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    listing: Path | None = None
    members: Sequence[Member] = []
    if any(Path(path).name in (CONFIG_NAME, INDEX_NAME) for path in files):
        listing = fetch_listing(repo_id, revision=commit, token=options.token)
        try:
            members = list_members(listing)
        except ReftError:
            if not repair:  # what is to be replaced need not be whole
                raise
    return _Remote(repo_id, commit, files, listing, members, options.token)


def _operations(
    folder: Path, facts: CardFacts, remote: _Remote, *, add: bool
) -> list[CommitOperationAdd | CommitOperationDelete]:
    written: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise IntegrityError("is a link", code="link", file=path.name, rule="links are not pushed")
        if path.is_file() and path.name != CARD_NAME:
            written[path.relative_to(folder).as_posix()] = path
    if add:
        facts = _extended(facts, remote)
        written[INDEX_NAME] = _merged_index(folder, facts, remote)
        stale: set[str] = set()
    else:
        stale = _stale(remote) - written.keys()
    card = remote.fetch(CARD_NAME) if CARD_NAME in remote.files else folder / CARD_NAME
    written[CARD_NAME] = updated_card(card.read_text("utf-8") if card.is_file() else None, facts).encode("utf-8")
    return [
        *(CommitOperationAdd(path, content) for path, content in written.items()),
        *(CommitOperationDelete(path) for path in sorted(stale)),
    ]


def _refuse_loss(facts: CardFacts, remote: _Remote) -> None:
    """ReFTs alone do not take the place of someone's LoRA unless asked to."""
    weights = [member.name for member in remote.members if member.kind != "reft"]
    if weights and all(member.kind == "reft" for member in facts.members):
        raise HubError(
            f"{remote.repo_id} holds {', '.join(map(repr, weights[:5]))}, which the pushed model does not have",
            code="hub.occupied",
            value=weights,
            rule="a push of ReFTs replaces a LoRA only where that was asked for",
            fix="add='edit' keeps it and adds the ReFT beside it; add=False replaces it",
        )


def _stale(remote: _Remote) -> set[str]:
    """Adapter files that the repository's index, or the format's own folder names, say are of a former push."""
    own = [m for m in remote.members if m.kind == "reft" or INDEX_NAME in remote.files or m.folder == "."]
    folders = [member.folder for member in own]
    return {
        path
        for path in remote.state()
        if str(Path(path).parent) in folders or path in (INDEX_NAME, ROUTER_NAME) or path.startswith(f"{REFT_FOLDER}/")
    }


def _extended(facts: CardFacts, remote: _Remote) -> CardFacts:
    """The facts with the repository's other adapters, whose lines come first."""
    names = {member.name for member in facts.members}
    for member in remote.members:
        if Member.at(member.name, member.kind) != member:
            raise HubError(
                f"{remote.repo_id} holds the ReFT {member.name!r} at {member.folder!r}",
                code="hub.layout",
                value=member.folder,
                rule="adapters are added to a repository of weight adapters, or to a bundle, whose ReFTs are in reft/",
                fix="push to another repository, or load that ReFT too and push a model with both",
            )
        if member.name in names and member.kind != "reft":
            raise HubError(
                f"{remote.repo_id} holds a {member.kind} named {member.name!r} already",
                code="hub.member",
                value=member.name,
                rule="the adapters of a bundle have names of their own",
                fix="give the name to add it under: add='edit'",
            )
    others = [member for member in remote.members if member.name not in names]
    kept = [
        describe(m.name, check_fields(from_object(load_json(remote.told(m.folder) / CONFIG_NAME).get("reft"))))
        for m in others
        if m.kind == "reft"
    ]
    return replace(facts, members=[*others, *facts.members], edits=[*kept, *facts.edits])


def _merged_index(folder: Path, facts: CardFacts, remote: _Remote) -> bytes:
    stored = read_index_entries(remote.told("")) if INDEX_NAME in remote.files else {}
    entries: list[dict[str, Any]] = []
    for member in facts.members:
        if (folder / member.folder / CONFIG_NAME).is_file() and member.kind == "reft":
            entries.append(member.entry(member.files(folder)))
        elif member.name in stored:
            entries.append(stored[member.name])
        else:
            entries.append(member.entry([remote.describe(path) for path in member.paths()]))
    return index_text(entries).encode("utf-8")
