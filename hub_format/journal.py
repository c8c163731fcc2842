"""Many files changed in one step: what is to be done stands in the folder before anything is done.

A commit is the folder `.reft_commit/` inside the adapters' folder: the new files under `files/`, and `plan.json`, the
steps. It appears by one rename and is then carried out step by step. A process that is killed before the rename leaves
the folder as it was; killed after it, whoever comes next, to read or to write, does the steps that are left.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from .errors import IntegrityError, ManifestError
from .folder_lock import folder_lock
from .manifest import CARD_NAME, CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME
from .strict_json import dump_json, load_json
from .tensors import file_digest

__all__ = ["COMMIT_NAME", "FILES_NAME", "STAGE_PREFIX", "Step", "check_target", "commit", "finish", "settle", "sync"]

COMMIT_NAME = ".reft_commit"
STAGE_PREFIX = ".reft-stage-"
FILES_NAME = "files"
PLAN_NAME = "plan.json"
PLAN_VERSION = 1
MAX_STEPS = 10_000
REMOVABLE = frozenset({CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, CARD_NAME, "reft_index.json"})


@dataclass(frozen=True)
class Step:
    """One step of a commit.

    Attributes:
        action: `"place"`: move the new file over the old one. `"remove"`: delete the old one.
        path: relative to the folder, parts joined by `/`.
        old: SHA-256 of the file that lay there when the commit was made; None where there was none.
        new: SHA-256 of the file that is placed.
    """

    action: Literal["place", "remove"]
    path: str
    old: str | None = None
    new: str | None = None


def settle(folder: Path) -> None:
    """Before a folder is read: finish the commit that was interrupted in it, or in the bundle it belongs to.

    Raises:
        IntegrityError: it cannot be finished, since the folder cannot be written (`save.interrupted`).
        ManifestError: what lies there is no commit.
    """
    folder = Path(os.path.abspath(folder))
    for root in (folder, folder.parent, folder.parent.parent):
        if not os.path.lexists(root / COMMIT_NAME) or (root != folder and not _is_trusted(root)):
            continue
        try:
            with folder_lock(root):
                finish(root)
        except OSError as error:
            raise IntegrityError(
                f"a save into {root} was interrupted, and it cannot be finished: {error.strerror}",
                code="save.interrupted",
                value=str(root),
                rule=f"the steps that {COMMIT_NAME} lists are done before the adapters are read",
                fix="load it once where the folder can be written, or copy it and load the copy",
            ) from error


def commit(stage: Path, root: Path, steps: Sequence[Step]) -> None:
    """Carry out a change of `root`, all of it or nothing. The caller holds the lock of `root`.

    Args:
        stage: a folder inside `root` whose `files/` holds every file that a step places, on the disk; it is used up.
        root: the folder to change, without an unfinished commit.
        steps: in order.
    """
    for step in steps:
        check_target(root, step.path)
        _check_writable(root, step.path)
    plan = stage / PLAN_NAME
    files = stage / FILES_NAME
    listed = [[step.action, step.path, _digest(root / step.path), _digest(files / step.path)] for step in steps]
    plan.write_text(dump_json({"version": PLAN_VERSION, "steps": listed}), encoding="utf-8", newline="\n")
    sync(plan)
    sync(stage)
    os.rename(stage, root / COMMIT_NAME)  # from here on it is done, by us or by who comes next
    sync(root)
    _carry_out(root, steps)


def finish(root: Path) -> None:
    """Do the steps that are left of a commit in `root`, if there is one. The caller holds the lock of `root`.

    PEFT's own writer knows nothing of commits. What it has saved into a folder since is newer: it stays.
    """
    pending = root / COMMIT_NAME
    if not os.path.lexists(pending):
        return
    if not _is_trusted(root):
        raise IntegrityError(
            f"{pending} was left by another user",
            code="save.interrupted",
            value=str(pending),
            rule="nothing is moved or removed on behalf of someone else",
            fix="let its owner load or save the adapter once, or remove it",
        )
    files = pending / FILES_NAME
    steps = _read_plan(pending)
    for step in steps:
        check_target(root, step.path)
        if os.path.lexists(files / step.path):
            check_target(files, step.path)
    written = {_parent(step) for step in steps if _is_written_since(root, step)}
    _carry_out(root, [step for step in steps if _parent(step) not in written])


def _carry_out(root: Path, steps: Sequence[Step]) -> None:
    pending = root / COMMIT_NAME
    placed = {step.path for step in steps if step.action == "place"}
    for step in steps:
        source, target = pending / FILES_NAME / step.path, root / step.path
        if step.action == "place" and source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        elif step.action == "remove" and (step.path not in placed or source.exists()):
            target.unlink(missing_ok=True)
    parents = {root / parent for step in steps for parent in PurePosixPath(step.path).parents}
    for parent in sorted(parents, reverse=True):  # the deepest first
        if parent != root and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
        elif parent.is_dir():
            sync(parent)
    spent = root / f"{STAGE_PREFIX}{os.urandom(8).hex()}"
    os.rename(pending, spent)
    shutil.rmtree(spent)


def _is_written_since(root: Path, step: Step) -> bool:
    """Whether a step's file is neither the one before it, nor the one after it, nor gone."""
    return _digest(root / step.path) not in (None, step.old, step.new)


def _parent(step: Step) -> str:
    """The folder whose files go together; a card goes by itself."""
    return step.path if step.path.endswith(CARD_NAME) else step.path.rpartition("/")[0]


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def check_target(root: Path, path: str) -> None:
    """Refuse a path where nothing may be written: through a link, over a folder, outside `root`.

    Raises:
        ManifestError: see above.
    """
    parts = path.split("/")
    if not all(_is_plain(part) for part in parts):
        raise ManifestError(f"the path {path[:80]!r} is not allowed", code="name", value=path)
    here = root
    for number, part in enumerate(parts, 1):
        here = here / part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise ManifestError(f"{here} is a link", code="link", rule="nothing is written through links")
        expected = stat.S_ISREG(mode) if number == len(parts) else stat.S_ISDIR(mode)
        if not expected:
            raise ManifestError(
                f"{here} is not a {'file' if number == len(parts) else 'folder'}",
                code="save.place",
                value=str(here),
                rule="a save replaces files by files",
                fix="move it away, or save into another folder",
            )


def _check_writable(root: Path, path: str) -> None:
    """What cannot be finished is not begun."""
    folder = (root / path).parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, onto the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_trusted(root: Path) -> bool:
    """Whether a commit was left by us, or by the owner of the folder: a plan found in `/tmp` may be anyone's."""
    if not hasattr(os, "geteuid"):  # Windows
        return True
    return (root / COMMIT_NAME).lstat().st_uid in (os.geteuid(), root.stat().st_uid)


def _read_plan(pending: Path) -> list[Step]:
    if pending.is_symlink() or not pending.is_dir():
        raise ManifestError("is not a folder", file=COMMIT_NAME, code="save.plan", fix="remove it")
    for part in (PLAN_NAME, FILES_NAME):
        if (pending / part).is_symlink():
            raise ManifestError("is a link", file=f"{COMMIT_NAME}/{part}", code="link", fix="remove it")
    if not (pending / PLAN_NAME).is_file():
        raise _no_plan("is missing")
    stored = load_json(pending / PLAN_NAME)
    steps = stored.get("steps")
    if set(stored) != {"version", "steps"} or stored["version"] != PLAN_VERSION or not isinstance(steps, list):
        raise _no_plan("is not of version 1: it has 'version' and a list 'steps'")
    if len(steps) > MAX_STEPS:
        raise _no_plan(f"lists more than {MAX_STEPS} steps")
    return [_step(entry) for entry in steps]


def _step(entry: Any) -> Step:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[1], str):
        raise _no_plan("holds a step that is not [action, path, old, new]")
    action, path, old, new = entry
    if not all(digest is None or isinstance(digest, str) for digest in (old, new)):
        raise _no_plan("holds a digest that is no text")
    if action == "place":
        return Step("place", path, old, new)
    if action != "remove" or path.split("/")[-1] not in REMOVABLE:
        raise _no_plan(f"wants to {str(action)[:20]!r} {path[:80]!r}")
    return Step("remove", path, old, new)


def _no_plan(why: str) -> ManifestError:
    return ManifestError(
        why, file=f"{COMMIT_NAME}/{PLAN_NAME}", code="save.plan", fix=f"remove {COMMIT_NAME}: no writer leaves such"
    )


def _is_plain(part: str) -> bool:
    """A name that stays in its folder everywhere, and is not hidden (`.git/hooks` is no place for a plan)."""
    return 0 < len(part) <= 255 and part[0] != "." and part.isprintable() and not set(part) & set('\\/:*?"<>|')
