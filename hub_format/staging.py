"""A folder of adapters made aside and moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bundle import INDEX_NAME, REFT_FOLDER, read_index
from .errors import ManifestError, ReftError
from .manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME

__all__ = ["staged_folder"]


@contextmanager
def staged_folder(root: Path, *, install: bool = True) -> Iterator[Path]:
    """A new folder beside `root`; what the block leaves in it is moved over `root`, unless the block raises.

    Args:
        root: of the adapters; made if it does not exist.
        install: False for the processes of a distributed run that only take part in collecting weights.

    Raises:
        ManifestError: `root` is a file or a link, or holds a link where a file would be written.
    """
    if root.is_file() or root.is_symlink():
        raise ManifestError(f"{root} is not a folder", value=str(root), fix="choose a folder to write into")
    parent = root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".saving-") as temporary:
        yield Path(temporary)
        if install:
            _move_into_place(Path(temporary), root)


def _move_into_place(stage: Path, root: Path) -> None:
    """Files over the old ones, index and manifests last; what belongs to no member any more is removed."""
    root.mkdir(parents=True, exist_ok=True)
    files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    for path in files:
        for part in (path, *path.parents):
            if (root / part).is_symlink() and part != Path("."):
                raise ManifestError(f"{root / part} is a link", code="link", rule="nothing is written through links")
    former = _former_folders(root)
    (root / INDEX_NAME).unlink(missing_ok=True)
    for folder in former:
        if not (stage / folder / CONFIG_NAME).is_file():
            _remove_adapter(root / folder)
    if (stage / CONFIG_NAME).is_file():
        for name in {PICKLE_NAME, MANIFEST_NAME} - {path.as_posix() for path in files}:
            (root / name).unlink(missing_ok=True)  # of another kind of adapter that lay at the root
    elif (root / MANIFEST_NAME).is_file():
        _remove_adapter(root)
    for old in (root / REFT_FOLDER).glob("*"):
        if old.is_dir() and not (stage / REFT_FOLDER / old.name).is_dir() and (old / MANIFEST_NAME).is_file():
            shutil.rmtree(old)
    for path in sorted(files, key=lambda path: (path.name == INDEX_NAME, path.name == MANIFEST_NAME)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        _sync(stage / path)  # PEFT's writer does not: after a power cut the name could stand before the bytes
        os.replace(stage / path, root / path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_adapter(folder: Path) -> None:
    for name in (MANIFEST_NAME, CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, "README.md"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _former_folders(root: Path) -> list[str]:
    """Folders of the weight adapters in the bundle that is about to be replaced."""
    try:
        members = read_index(root) or []
    except ReftError:  # torn or changed: what lies there may be someone's own
        return []
    return [member.folder for member in members if member.kind != "reft"]
