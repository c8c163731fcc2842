"""Which adapters a folder holds: a bundle by its index, any other folder by the configs in it."""

from __future__ import annotations

from pathlib import Path

from .bundle import INDEX_NAME, REFT_FOLDER, Member, check_name, read_index
from .errors import ManifestError
from .journal import settle
from .manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from .reader import check_folder, check_link
from .strict_json import load_json
from .tensors import read_tensor_table

__all__ = ["check_members", "list_members"]


def list_members(root: Path) -> list[Member]:
    """The adapters of a folder, without looking at weights.

    Raises:
        ManifestError: no adapter lies there, the index is malformed, or ReFTs of a bundle lie there without one.
    """
    settle(root)
    check_link(root / INDEX_NAME)
    members = read_index(root, check_files=False)
    if members is not None:
        return members
    if any(root.glob(f"{REFT_FOLDER}/*/{CONFIG_NAME}")):
        raise ManifestError(
            f"{root.name} holds {REFT_FOLDER}/<name>/ without {INDEX_NAME}",
            code="bundle.index",
            file=INDEX_NAME,
            rule="the index of a bundle is written last",
            fix="save or push the bundle again: it was interrupted",
        )
    found = [_found(root, path) for path in sorted({*root.glob(CONFIG_NAME), *root.glob(f"*/{CONFIG_NAME}")})]
    if not found:
        raise ManifestError(
            f"{root.name} holds no {CONFIG_NAME}",
            code="adapter.missing",
            file=CONFIG_NAME,
            rule="an adapter lies at the root or in a folder of its own name",
            fix="check the name and the revision",
        )
    return sorted(found, key=lambda member: (member.folder != ".", member.name))


def check_members(root: Path) -> list[str]:
    """Check every adapter of a folder; returns the paths of their files, the index among them, sorted.

    Raises:
        ReftError: a file is missing or is not what manifest, index or format say.
    """
    members = list_members(root)
    names: set[str] = set()
    if read_index(root) is not None:
        names.add(INDEX_NAME)
    for member in members:
        folder = root / member.folder
        weights = folder / WEIGHTS_NAME
        check_link(folder / CONFIG_NAME)
        check_link(weights)
        if not weights.is_file():
            raise ManifestError(
                f"adapter {member.name!r} has a config and no {WEIGHTS_NAME}",
                code="weights.missing",
                file=WEIGHTS_NAME,
                value=member.name,
                fix="take a revision whose adapter was saved in safetensors",
            )
        if member.kind == "reft":
            check_folder(folder)
        else:
            load_json(folder / CONFIG_NAME)
            read_tensor_table(weights)
        own = (CONFIG_NAME, WEIGHTS_NAME, *([MANIFEST_NAME] if member.kind == "reft" else []))
        names.update((Path(member.folder) / name).as_posix() for name in own)
    return sorted(names)


def _found(root: Path, path: Path) -> Member:
    check_link(path)
    kind = load_json(path).get("peft_type")
    if not isinstance(kind, str) or not kind:
        raise ManifestError(
            f"gives no peft_type but {str(kind)[:40]!r}", code="adapter.kind", file=path.relative_to(root).as_posix()
        )
    if path.parent == root:
        return Member("default", kind.lower(), ".")
    check_name(path.parent.name)
    return Member(path.parent.name, kind.lower(), path.parent.name)
