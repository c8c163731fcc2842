"""Checks a folder against its manifest before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .envelope import MODEL_PREFIX, check_beside, check_envelope
from .errors import ConfigError, IntegrityError, ManifestError
from .manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, Manifest, describe_file
from .schema import SiteGroup, check_fields, from_object
from .strict_json import load_json
from .tensors import TensorInfo, read_tensor_table

__all__ = ["CheckedFolder", "check_folder", "check_link", "check_tensor_names", "unit_signatures"]

UNIT_PREFIX = "reft_"
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class CheckedFolder:
    """A folder that agrees with its manifest."""

    config: Mapping[str, Any]
    manifest: Manifest


def check_folder(folder: Path) -> CheckedFolder | None:
    """Check a folder that should hold one ReFT adapter.

    Returns:
        The config and manifest; None for a folder that has a config and no weights (PEFT writes such).

    Raises:
        ManifestError: weights without a manifest, or a manifest that disagrees with the folder.
        IntegrityError: a file or tensor whose bytes are not those that were saved.
        FileFormatError, ConfigError, PositionSyntaxError: a file that the format does not allow.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, MANIFEST_NAME):
        check_link(folder / name)
    weights = [name for name in (WEIGHTS_NAME, PICKLE_NAME) if (folder / name).is_file()]
    config = load_json(folder / CONFIG_NAME)
    check_envelope(config)
    if not (folder / MANIFEST_NAME).is_file():
        if weights:
            raise ManifestError(
                f"{weights[0]} lies here without {MANIFEST_NAME}",
                code="manifest.missing",
                file=str(folder.name),
                rule="ReFT weights are read only beside the manifest that was written after them",
                fix="save the adapter again: the folder is torn, or was not written by peft-reft",
            )
        return None
    manifest = Manifest.load(folder / MANIFEST_NAME)
    listed = {info.path for info in manifest.files}
    if listed != {CONFIG_NAME, *weights} or not weights:
        raise ManifestError(
            f"lists {sorted(listed)}, the folder holds {sorted({CONFIG_NAME, *weights})}", file=MANIFEST_NAME
        )
    for info in manifest.files:
        if describe_file(folder, info.path) != info:
            raise IntegrityError(
                "is not the file that the manifest describes",
                code="integrity.file",
                file=info.path,
                fix="save or download the adapter again: the folder was changed or interrupted after saving",
            )
    stored = config.get("reft")
    groups = check_fields(from_object(stored))
    if weights[0] == WEIGHTS_NAME:
        table = read_tensor_table(folder / WEIGHTS_NAME, check_values=True)
        if table != dict(manifest.tensors):
            raise IntegrityError(
                "tensors differ from the manifest's list", code="integrity.tensors", file=WEIGHTS_NAME
            )
    recorded = stored.get("tensors") if isinstance(stored, dict) else None
    if recorded != {name: info.to_json() for name, info in manifest.tensors.items()}:
        raise ManifestError("and the config's list of tensors disagree", code="manifest.config", file=MANIFEST_NAME)
    check_tensor_names(manifest.tensors, groups, hidden=manifest.base_model.get("hidden_size"))
    check_beside(config, [name for name in manifest.tensors if not _of_edit(name)])
    return CheckedFolder(config, manifest)


def unit_signatures(groups: tuple[SiteGroup, ...]) -> list[SiteGroup]:
    """The group of each unit, in the order in which units are numbered: over the groups, then over the terms."""
    return [group for group in groups for _ in range(group.units)]


def check_tensor_names(
    tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...], *, hidden: object = None
) -> None:
    """Refuse tensors that the config's kinds, ranks and terms do not have, and sites that lack one of theirs."""
    units = unit_signatures(groups)
    sites: dict[tuple[str, int], set[str]] = {}
    for name, info in tensors.items():
        site, _, rest = name.rpartition(f".{UNIT_PREFIX}")
        number, _, tensor = rest.partition(".")
        if not _of_edit(name):
            continue  # a module saved beside the edits (`modules_to_save`): PEFT's own
        if info.dtype not in FLOATS:
            raise _unfit(name, f"dtype {info.dtype}; parameters of an edit are {', '.join(FLOATS)}")
        if re.fullmatch(r"0|[1-9][0-9]{0,5}", number) is None or int(number) >= len(units):
            raise _unfit(name, f"the config describes {len(units)} interventions per site")
        group = units[int(number)]
        size = hidden if isinstance(hidden, int) and group.full_width else _width(name, tensors)
        if group.r > size and group.signature.has_rank:
            raise ConfigError(f"r={group.r} is larger than the hidden size {size}", value=group.r, fix="choose r ≤ it")
        expected = group.shapes(hidden=size)
        if expected.get(tensor) != info.shape:
            raise _unfit(name, f"shape {list(info.shape)}; {group.intervention} of rank {group.r} has {expected}")
        sites.setdefault((site, int(number)), set()).add(tensor)
    for (place, unit), present in sites.items():
        if lacking := set(units[unit].shapes(hidden=1)) - present:
            raise _unfit(f"{place}.{UNIT_PREFIX}{unit}.{sorted(lacking)[0]}", "it is missing")


def _of_edit(name: str) -> bool:
    return name.startswith(MODEL_PREFIX) and name.rpartition(f".{UNIT_PREFIX}")[0].endswith(".reft")


def _width(name: str, tensors: Mapping[str, TensorInfo]) -> int:
    """Hidden size of the intervention that a tensor belongs to, from its widest tensor: no manifest says a head's."""
    unit = name.rpartition(".")[0] + "."
    return max((info.shape[-1] for other, info in tensors.items() if other.startswith(unit) and info.shape), default=0)


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
        "is a link", code="link", file=path.name, rule="links are followed only inside a Hugging Face cache"
    )


def _unfit(name: str, why: str) -> ManifestError:
    return ManifestError(f"tensor {name[:120]!r} does not fit the config: {why}", code="tensors.unfit")
