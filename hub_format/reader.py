"""Checks a folder against its manifest before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .envelope import MODEL_PREFIX, check_beside, check_envelope
from .errors import ConfigError, FileFormatError, IntegrityError, ManifestError, as_path, in_file
from .kinds import COMPLEMENT
from .manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, Manifest, describe_file
from .migrations import migrate
from .pickles import check_pickle, refuse_pickle
from .schema import SiteGroup, check_fields, from_object
from .strict_json import load_json
from .tensors import TensorInfo, read_tensor_table

__all__ = [
    "CheckedFolder",
    "check_folder",
    "check_link",
    "check_regular",
    "check_tensor_names",
    "edit_of",
    "unit_signatures",
]

UNIT_PREFIX = "reft_"
_SITE = re.compile(r"[\w-]+(\.[\w-]+)+")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class CheckedFolder:
    """A folder that agrees with its manifest."""

    config: Mapping[str, Any]
    manifest: Manifest
    groups: tuple[SiteGroup, ...]


def check_folder(folder: Path, *, pickles: bool = False) -> CheckedFolder | None:
    """Check a folder that should hold one ReFT adapter.

    Args:
        folder: to check.
        pickles: whether `adapter_model.bin` is let through where it does nothing but build tensors: PEFT's own load
            reads such files. Everywhere else it is refused.

    Returns:
        The config and manifest; None for a folder that has a config and no weights (PEFT writes such).

    Raises:
        ManifestError: weights without a manifest, or a manifest that disagrees with the folder.
        IntegrityError: a file or tensor whose bytes are not those that were saved.
        FileFormatError, ConfigError, PositionSyntaxError: a file that the format does not allow.
    """
    folder = as_path(folder, "folder")
    weights = _weights_here(folder)
    config = load_json(folder / CONFIG_NAME)
    with in_file(CONFIG_NAME):
        check_envelope(config)
    if not (folder / MANIFEST_NAME).is_file():
        if weights:
            raise ManifestError(
                f"{weights[0]} lies here without {MANIFEST_NAME}",
                code="manifest.missing",
                file=MANIFEST_NAME,
                rule="ReFT weights are read only beside the manifest that was written after them",
                fix="save the adapter again: the folder is torn, or was not written by peft-reft",
            )
        return None
    if PICKLE_NAME in weights and (len(weights) > 1 or not pickles):
        raise refuse_pickle(PICKLE_NAME)
    manifest = Manifest.load(folder / MANIFEST_NAME)
    _check_files(folder, weights, manifest)
    with in_file(CONFIG_NAME):
        groups = check_fields(from_object(config.get("reft"), manifest_version=manifest.spec_version))
    _check_tensors(folder, weights[0], config, manifest)
    with in_file(weights[0]):
        check_tensor_names(manifest.tensors, groups, base_model=manifest.base_model)
        check_beside(config, [name for name in manifest.tensors if not _of_edit(name)])
    return CheckedFolder(config, manifest, groups)


def _weights_here(folder: Path) -> list[str]:
    """Names of the weights files of a folder that has a config; every file of an adapter is a plain one."""
    for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, MANIFEST_NAME):
        check_link(folder / name)
        check_regular(folder / name)
    if not (folder / CONFIG_NAME).is_file():
        raise ManifestError(
            f"{folder.name} holds no {CONFIG_NAME}",
            code="adapter.missing",
            file=CONFIG_NAME,
            rule="an adapter is a folder with its config, weights and manifest",
            fix="check the name and the revision",
        )
    return [name for name in (WEIGHTS_NAME, PICKLE_NAME) if (folder / name).is_file()]


def _check_files(folder: Path, weights: list[str], manifest: Manifest) -> None:
    """Refuse files that the manifest does not list, or that have other bytes than it says."""
    listed = {info.path for info in manifest.files}
    if PICKLE_NAME in weights and PICKLE_NAME not in listed:
        raise refuse_pickle(PICKLE_NAME)
    if listed != {CONFIG_NAME, *weights} or not weights:
        raise ManifestError(
            f"lists {sorted(listed)}, the folder holds {sorted({CONFIG_NAME, *weights})}",
            file=MANIFEST_NAME,
            rule="it lists the config and one weights file, and both lie beside it",
            fix="save or download the adapter again",
        )
    for info in manifest.files:
        if (folder / info.path).stat().st_size != info.size or describe_file(folder, info.path) != info:
            raise IntegrityError(
                "is not the file that the manifest describes",
                code="integrity.file",
                file=info.path,
                fix="save or download the adapter again: the folder was changed or interrupted after saving",
            )


def _check_tensors(folder: Path, weights: str, config: Mapping[str, Any], manifest: Manifest) -> None:
    """Refuse tensors that differ between the weights, the manifest and the config."""
    if weights == PICKLE_NAME:
        check_pickle(folder / PICKLE_NAME)
    elif read_tensor_table(folder / WEIGHTS_NAME, check_values=True) != dict(manifest.tensors):
        raise IntegrityError(
            "tensors differ from the manifest's list",
            code="integrity.tensors",
            file=WEIGHTS_NAME,
            rule="config, weights and manifest were saved together",
            fix="save or download the adapter again",
        )
    recorded = migrate(config["reft"], "reft").get("tensors")
    if recorded != {name: info.to_json() for name, info in manifest.tensors.items()}:
        raise ManifestError(
            "and the config's list of tensors disagree",
            code="manifest.config",
            file=MANIFEST_NAME,
            rule="config, weights and manifest were saved together",
            fix="save or download the adapter again",
        )


def unit_signatures(groups: tuple[SiteGroup, ...]) -> list[SiteGroup]:
    """The group of each unit, in the order in which units are numbered: over the groups, then over the terms."""
    return [group for group in groups for _ in range(group.units)]


def check_tensor_names(
    tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...], *, base_model: Mapping[str, Any] | None = None
) -> None:
    """Refuse tensors that the config's kinds, ranks and terms do not have, and sites that lack one of theirs.

    Args:
        tensors: of the weights file.
        groups: of the config.
        base_model: what the manifest says of the base: its hidden size, and residual streams where there are several.
    """
    hidden, streams = ((base_model or {}).get(name) for name in ("hidden_size", "streams"))
    units, widths = unit_signatures(groups), _widths(tensors)
    siblings = [range(first, first + group.units) for first, group in _firsts(groups) for _ in range(group.units)]
    sites: dict[tuple[str, int], set[str]] = {}
    shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}  # by unit and width
    for name, info in tensors.items():
        site, _, rest = name.rpartition(f".{UNIT_PREFIX}")
        number, _, tensor = rest.partition(".")
        if not _of_edit(name):
            continue  # a module saved beside the edits (`modules_to_save`): PEFT's own
        if info.dtype not in FLOATS:
            raise _unfit(name, f"dtype {info.dtype}; parameters of an edit are {', '.join(FLOATS)}")
        if _SITE.fullmatch(site) is None:
            raise _unfit(name, "its site is no dotted name of a module")
        if re.fullmatch(r"0|[1-9][0-9]{0,5}", number) is None or int(number) >= len(units):
            raise _unfit(name, f"the config describes {len(units)} interventions per site")
        group = units[int(number)]
        size = width = widths[name.rpartition(".")[0]]
        if isinstance(hidden, int) and group.full_width:
            whole = hidden * streams if isinstance(streams, int) else hidden
            size = whole if width == whole else hidden  # of all streams, or of a part that sees one
        if group.r > size and group.signature.has_rank:
            raise ConfigError(
                f"r={group.r} is larger than the hidden size {size}",
                file=CONFIG_NAME,
                value=group.r,
                fix="choose r ≤ it",
            )
        if (expected := shapes.get((int(number), size))) is None:
            expected = shapes[int(number), size] = group.shapes(hidden=size)
        if tensor == COMPLEMENT and group.orthogonal:
            room = size - (group.r if group.signature.has_rank else 1)
            if len(info.shape) != 2 or info.shape[1] != size or not 0 < info.shape[0] <= room:
                raise _unfit(name, f"shape {list(info.shape)}; it has from 1 to {room} rows of {size}")
        elif expected.get(tensor) != info.shape:
            raise _unfit(name, f"shape {list(info.shape)}; {group.intervention} of rank {group.r} has {expected}")
        sites.setdefault((site, int(number)), set()).add(tensor)
    if not sites:
        raise _unfit(f"….{UNIT_PREFIX}0", "the file holds no tensor of any edit")
    required = [set(group.shapes(hidden=1)) for group in units]
    for (place, unit), present in sites.items():
        if (other := next((n for n in siblings[unit] if (place, n) not in sites), None)) is not None:
            raise _unfit(f"{place}.{UNIT_PREFIX}{other}", "its site has other terms of its group")
        if lacking := required[unit] - present:
            raise _unfit(f"{place}.{UNIT_PREFIX}{unit}.{sorted(lacking)[0]}", "it is missing")


def edit_of(name: str) -> tuple[str, int, str] | None:
    """Site, unit and own name of an edit's tensor, of a name that was checked; None for one beside the edits."""
    if not _of_edit(name):
        return None
    site, _, rest = name.rpartition(f".{UNIT_PREFIX}")
    number, _, tensor = rest.partition(".")
    return site.removeprefix(MODEL_PREFIX).removesuffix(".reft"), int(number), tensor


def _of_edit(name: str) -> bool:
    return name.startswith(MODEL_PREFIX) and name.rpartition(f".{UNIT_PREFIX}")[0].endswith(".reft")


def _firsts(groups: tuple[SiteGroup, ...]) -> Iterator[tuple[int, SiteGroup]]:
    """The number of the first unit of each group, and the group."""
    first = 0
    for group in groups:
        yield first, group
        first += group.units


def _widths(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Hidden size of every intervention, from its widest tensor: no manifest says a head's."""
    found: dict[str, int] = {}
    for name, info in tensors.items():
        unit = name.rpartition(".")[0]
        found[unit] = max(found.get(unit, 0), *info.shape[-1:], 0)
    return found


def check_link(path: Path) -> None:
    """Links are followed only where the Hub's cache makes them: snapshots/… → blobs/…."""
    if not path.is_symlink():
        return
    target = path.resolve()
    if "snapshots" in path.parts and target.parent.name == "blobs":
        root = path.parts[: path.parts.index("snapshots")]
        if target.parent.parent.parts == Path(*root).resolve().parts:
            return
    raise IntegrityError(
        "is a link",
        code="link",
        file=path.name,
        rule="links are followed only inside a Hugging Face cache",
        fix="copy the file itself",
    )


def check_regular(path: Path) -> None:
    """Refuse what lies in a file's place and is none: a pipe, which a reader would wait for, a device or a folder."""
    if path.exists() and not path.is_file():
        raise FileFormatError(
            "is no file",
            code="file.kind",
            file=path.name,
            rule="each part of an adapter is a regular file",
            fix="save or download the adapter again",
        )


def _unfit(name: str, why: str) -> ManifestError:
    return ManifestError(
        f"tensor {name[:120]!r} does not fit the config: {why}",
        code="tensors.unfit",
        rule="names, shapes and dtypes follow from the config's kinds, ranks and terms",
        fix="save or download the adapter again",
    )
