"""What a wheel and an sdist must hold, and must not."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

__all__ = ["dead_links", "description", "names_in", "problems"]

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
BESIDE |= {"pyproject.toml", "setup.cfg", "setup.py"}
_TARGETS = re.compile(r'\]\(\s*([^)\s]+)|^ *\[[^\]]+\]:\s+(\S+)|(?:href|src)="([^"]+)', re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#")


def names_in(archive: Path) -> list[str]:
    """Files of a wheel, or of an sdist without the folder that all of them lie in."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return sorted(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return sorted(member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile())


def description(archive: Path) -> str:
    """What a package index shows of an archive: the text behind the metadata, empty where there is none."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            files = [wheel.read(name) for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    else:
        with tarfile.open(archive) as sdist:
            inside = [member for member in sdist.getmembers() if member.name.count("/") == 1]
            found = [sdist.extractfile(each) for each in inside if each.name.endswith("/PKG-INFO")]
            files = [each.read() for each in found if each is not None]
    return "".join(str(BytesParser().parsebytes(file).get_payload(decode=True), "utf-8") for file in files)


def dead_links(markdown: str) -> list[str]:
    """Targets that lead nowhere on a page of a package index: files of the repository."""
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)
    found = _TARGETS.findall(prose)
    return [target for kinds in found for target in kinds if target and not _ELSEWHERE.match(target)]


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
    dead = dead_links(description(archive))
    return [f"{archive.name} lacks {name}" for name in sorted(wanted - names)] + [
        *(f"{archive.name} holds {name}" for name in sorted(more)),
        *(f"{archive.name} has a link to {target}, which an index does not have" for target in dead),
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
