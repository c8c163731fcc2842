"""A folder of adapters made aside and put into place in one step."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bundle import BASE, INDEX_NAME, REFT_FOLDER, read_index
from .errors import FileFormatError, ManifestError, ReftError
from .folder_lock import folder_lock, hold, is_held
from .journal import FILES_NAME, STAGE_PREFIX, Step, check_target, commit, finish, sync
from .manifest import CARD_NAME, CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, ROUTER_NAME, WEIGHTS_NAME
from .router_file import read_router
from .strict_json import load_json

__all__ = ["is_vacant", "staged_file", "staged_folder"]

OWN = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, MANIFEST_NAME)
"""The files of one adapter."""


@contextmanager
def staged_folder(root: Path, *, install: bool = True) -> Iterator[Path]:
    """A new folder; what the block leaves in it takes the place of `root`'s adapters, unless the block raises.

    Killed at any moment, the old adapters are there, or the new ones: see `journal`. Adapters that the new ones do not
    hold are removed, and a router that sends to them; other files of `root` stay.

    Args:
        root: of the adapters; made if it does not exist.
        install: False for the processes of a distributed run that only take part in collecting weights.

    Raises:
        ManifestError: `root` is a file or a link, or holds a link or a folder where a file would be written.
        IntegrityError: another process keeps saving into `root` (`save.busy`).
    """
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise ManifestError(f"{root} is not a folder", value=str(root), fix="choose a folder to write into")
    if not install:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    root = Path(os.path.abspath(root))
    root.parent.mkdir(parents=True, exist_ok=True)
    # inside the folder, where a rename never crosses a file system; beside it as long as there is none
    stage, held = _new_stage(root) if root.is_dir() else _new_stage(root.parent, f".{root.name[:64]}")
    try:
        (stage / FILES_NAME).mkdir()
        yield stage / FILES_NAME
        _by_umask(stage)
        _install(stage, root)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A path for a new file; what the block writes there becomes `path` in one step, unless the block raises."""
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    stage, held = _new_stage(path.parent, f".{path.name[:64]}")
    try:
        yield stage / path.name
        _by_umask(stage)
        os.replace(stage / path.name, path)
        sync(path.parent)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(stage, ignore_errors=True)


def is_vacant(folder: Path) -> bool:
    """Whether a folder does not exist, or holds nothing but what an interrupted save left."""
    return not folder.exists() or (
        folder.is_dir() and all(path.name.startswith(STAGE_PREFIX) for path in folder.iterdir())
    )


def _new_stage(place: Path, prefix: str = "") -> tuple[Path, int | None]:
    """A folder of our own, locked as long as we live; what dead processes left of theirs is removed."""
    prefix += STAGE_PREFIX
    with folder_lock(place):
        for left in place.iterdir():
            if left.name.startswith(prefix) and left.is_dir() and not left.is_symlink() and not is_held(left):
                shutil.rmtree(left, ignore_errors=True)
        stage = place / f"{prefix}{os.urandom(8).hex()}"
        stage.mkdir()
        return stage, hold(stage)


def _by_umask(stage: Path) -> None:
    """Modes as the umask makes them (safetensors' own files are 0600), and every byte on the disk."""
    probe = stage / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for folder, _, names in os.walk(stage, topdown=False):
        for name in names:
            os.chmod(Path(folder, name), mode)
            sync(Path(folder, name))
        sync(Path(folder))


def _install(stage: Path, root: Path) -> None:
    if not root.exists():
        try:
            os.rename(stage / FILES_NAME, root)
        except OSError:
            if not root.is_dir():
                raise
        else:
            sync(root.parent)
            return
    with folder_lock(root):
        finish(root)
        if stage.parent != root:  # another process made the folder meanwhile: ours replaces its adapters
            os.rename(stage, stage := root / f"{STAGE_PREFIX}{os.urandom(8).hex()}")
        try:
            if steps := _steps(stage / FILES_NAME, root):
                commit(stage, root, steps)
        finally:
            shutil.rmtree(stage, ignore_errors=True)  # what a commit did not take


def _steps(files: Path, root: Path) -> list[Step]:
    """What turns `root` into what is staged; files that are there already are left alone."""
    staged = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if not path.is_dir())
    for path in staged:
        check_target(root, path)
    stale = sorted(_stale(set(staged), files, root))
    changed = [path for path in staged if not _is_same(files / path, root / path)]
    steps = [Step("remove", path) for path in stale]
    for folder in sorted({str(Path(path).parent) for path in changed}):
        names = {Path(path).name for path in changed if str(Path(path).parent) == folder}
        steps += _in_order(folder, names, _kind(files / folder), _kind(root / folder))
    return sorted(steps, key=lambda step: step.path == INDEX_NAME)  # the index last


def _in_order(folder: str, names: set[str], new: str | None, old: str | None) -> list[Step]:
    """The steps of one folder, in an order that no reader takes for an adapter halfway.

    Our readers finish a commit first. PEFT alone reads a LoRA's config, then its weights: where both change, the old
    config goes before the new weights come. A ReFT's config is never absent, so that PEFT hands the folder to us.
    """
    first = {CONFIG_NAME: 0} if new == "REFT" else {CONFIG_NAME: 2}
    last = {MANIFEST_NAME: 3}
    ordered = sorted(names, key=lambda name: ({WEIGHTS_NAME: 1, **first, **last}.get(name, 1), name))
    steps = [Step("place", name if folder == "." else f"{folder}/{name}") for name in ordered]
    both = {CONFIG_NAME, WEIGHTS_NAME} <= names and "REFT" not in (new, old) and old is not None
    config = CONFIG_NAME if folder == "." else f"{folder}/{CONFIG_NAME}"
    return [*([Step("remove", config)] if both else []), *steps]


def _stale(staged: set[str], files: Path, root: Path) -> set[str]:
    """Files of adapters that lie in `root` and are not of what is staged."""
    folders = {path.parent for path in root.glob(f"{REFT_FOLDER}/*/{MANIFEST_NAME}")}
    folders |= {root / folder for folder in _former_folders(root)}
    folders |= set(_former_siblings(root))
    folders |= {root / Path(path).parent for path in staged if Path(path).name == CONFIG_NAME}
    if (root / MANIFEST_NAME).is_file():
        folders.add(root)
    found = {folder / name for folder in folders for name in OWN} | {root / INDEX_NAME}
    if (root / CONFIG_NAME).is_file() and root in folders and CONFIG_NAME not in staged:
        found.add(root / CARD_NAME)  # the card of an adapter that goes
    if ROUTER_NAME not in staged and _sends_elsewhere(root / ROUTER_NAME, staged):
        found.add(root / ROUTER_NAME)
    paths = {path.relative_to(root).as_posix() for path in found if os.path.lexists(path)} - staged
    for path in paths:
        check_target(root, path)
    return paths


def _sends_elsewhere(router: Path, staged: set[str]) -> bool:
    """Whether a router of skills knows adapters that what is staged does not hold; one that is none is not ours."""
    try:
        known = set(read_router(router).adapters) if router.is_file() else set()
    except ReftError:
        return False
    coming = {Path(path).parent.name or "default" for path in staged if Path(path).name == CONFIG_NAME}
    return not known <= {*coming, BASE}


def _former_siblings(root: Path) -> list[Path]:
    """ReFTs in `<name>/` that PEFT saved beside the one at the root: an adapter's files and nothing else.

    A folder saved by itself has a card, a trainer's checkpoint its state; both stay.
    """
    if not any((root / name).is_file() for name in (CONFIG_NAME, CARD_NAME)):
        return []
    found = []
    for path in root.glob(f"*/{MANIFEST_NAME}"):
        names = {other.name for other in path.parent.iterdir()}
        if path.parent.name != REFT_FOLDER and names <= set(OWN) and not path.parent.is_symlink():
            found.append(path.parent)
    return found


def _former_folders(root: Path) -> list[str]:
    """Folders of the weight adapters in the bundle that is about to be replaced."""
    try:
        members = read_index(root) or []
    except ReftError:  # torn or changed: what lies there may be someone's own
        return []
    return [member.folder for member in members if member.kind != "reft"]


def _kind(folder: Path) -> str | None:
    """PEFT's type of the adapter in a folder; None where there is none."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    try:
        return str(load_json(folder / CONFIG_NAME).get("peft_type"))
    except FileFormatError:
        return "unknown"


def _is_same(new: Path, old: Path) -> bool:
    return old.is_file() and new.stat().st_mode == old.stat().st_mode and filecmp.cmp(new, old, shallow=False)
