"""What a wheel and an sdist must hold, and must not."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

__all__ = ["names_in", "problems"]

PACKAGE = "peft_reft"
DATA = (
    "peft_reft/hub_format/SPEC.md",
    "peft_reft/hub_format/schema.json",
    "peft_reft/py.typed",
    "peft_reft/sites/known_blocks.json",
)
"""Files of the wheel that are no modules."""
FOLDERS = {"peft_reft": "peft_reft", "hub_format": "peft_reft/hub_format", "integrations": "peft_reft/integrations"}
"""Folder of the sdist → of the wheel."""
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "SECURITY.md"}
BESIDE |= {"pyproject.toml", "setup.cfg"}


def names_in(archive: Path) -> list[str]:
    """Files of a wheel, or of an sdist without the folder that all of them lie in."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return sorted(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return sorted(member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile())


def problems(archive: Path, root: Path) -> list[str]:
    """What is wrong with an archive.

    Args:
        archive: a wheel or an sdist.
        root: the repository that it was built from.

    Returns:
        One line for each fault; none where all is well.
    """
    names = set(names_in(archive))
    sources = {
        (path.relative_to(root).as_posix(), f"{inside}/{path.relative_to(root / folder).as_posix()}")
        for folder, inside in FOLDERS.items()
        for path in (root / folder).rglob("*.py")
    }
    wheel = archive.suffix == ".whl"
    wanted = {inside if wheel else outside for outside, inside in sources}
    outside = {inside: folder for folder, inside in FOLDERS.items()}
    wanted |= {name if wheel else _in_sdist(name, outside) for name in DATA}
    more = {name for name in names - wanted if not _belongs(name, wheel=wheel)}
    return [f"{archive.name} lacks {name}" for name in sorted(wanted - names)] + [
        f"{archive.name} holds {name}" for name in sorted(more)
    ]


def _in_sdist(name: str, outside: dict[str, str]) -> str:
    """Where a file of the wheel lies in the sdist: the longest mapped folder counts."""
    inside = max((each for each in outside if name.startswith(f"{each}/")), key=len)
    return outside[inside] + name.removeprefix(inside)


def _belongs(name: str, *, wheel: bool) -> bool:
    top, _, rest = name.partition("/")
    if wheel:
        return top.startswith(PACKAGE) and top.endswith(".dist-info")
    return name in BESIDE or (top.endswith(".egg-info") and bool(rest))
