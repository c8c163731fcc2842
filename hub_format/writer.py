"""Writes config and manifest: temporary file, fsync, replace, the manifest last."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .envelope import check_beside, check_envelope
from .errors import FileFormatError, IntegrityError
from .manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLE_NAME,
    STREAMS_SINCE,
    WEIGHTS_NAME,
    FileInfo,
    Manifest,
    describe_file,
)
from .reader import check_tensor_names, edit_of
from .schema import check_fields, from_object
from .strict_json import dump_json
from .tensors import TensorInfo, read_tensor_table
from .versions import SPEC_VERSION, parse_version

__all__ = ["ComingWeights", "producer", "write_adapter_files", "write_atomic"]


@dataclass(frozen=True)
class ComingWeights:
    """A weights file that someone writes after the manifest.

    Attributes:
        file: its path in the folder, its size and digest.
        tensors: name → dtype, shape, digest.
    """

    file: FileInfo
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, path: Path, tensors: Mapping[str, TensorInfo]) -> ComingWeights:
        """The description of a file that is equal to the one to come, and has its name."""
        return cls(describe_file(path.parent, path.name), tensors)


def producer() -> dict[str, str]:
    """Name and version of this library, as a manifest records it."""
    try:
        return {"name": "peft-reft", "version": version("peft-reft")}
    except PackageNotFoundError:  # run from a copy that was never installed
        return {"name": "peft-reft", "version": "unknown"}


def write_adapter_files(
    folder: Path,
    config: Mapping[str, Any],
    *,
    base_model: Mapping[str, Any],
    producer: Mapping[str, str],
    pickled_tensors: Mapping[str, TensorInfo] | None = None,
    coming: ComingWeights | None = None,
    since: str = SPEC_VERSION,
) -> None:
    """Write config and manifest beside the weights that lie in `folder` already.

    Without weights only the config is written. With weights, the tensors' digests go into the config's `reft` object
    and into the manifest, which is removed first and written last: an interruption leaves weights without a manifest,
    which is refused at load. So are weights that are announced and do not come, or come with other bytes.

    Args:
        folder: an existing folder.
        config: the whole `adapter_config.json`, with its `reft` object.
        base_model: identity of the base model.
        producer: name and version of the writer.
        pickled_tensors: the tensors of `adapter_model.bin`, where that is what PEFT wrote.
        coming: the weights, where they are written later; what lies there in their place is of an earlier save.
        since: the version of the format from which on the config's components are what they are in this base.
    """
    for name in (CONFIG_NAME, MANIFEST_NAME):
        if (folder / name).is_symlink():
            raise IntegrityError("is a link", code="link", file=name, rule="nothing is written through links")
    check_envelope(config)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if coming is not None and _holds(folder, coming):
        coming = None
    weights, tensors = _weights(folder, pickled_tensors) if coming is None else _announced(folder, coming)
    stored = dict(config["reft"])
    if weights is not None:
        needed = (since, STREAMS_SINCE if "streams" in base_model else SPEC_VERSION)
        stored["spec_version"] = max(stored["spec_version"], *needed, key=parse_version)
        check_tensor_names(tensors, check_fields(from_object(stored)), base_model=base_model)
        check_beside(config, [name for name in tensors if edit_of(name) is None])
        stored["tensors"] = {name: info.to_json() for name, info in tensors.items()}
    write_atomic(folder / CONFIG_NAME, dump_json({**config, "reft": stored}))
    if weights is None:
        return
    if coming is None:
        os.chmod(folder / weights, stat.S_IMODE((folder / CONFIG_NAME).stat().st_mode))  # safetensors makes 0600 files
    manifest = Manifest(
        base_model=base_model,
        members=({"kind": "reft", "config": CONFIG_NAME, "weights": weights},),
        files=(describe_file(folder, CONFIG_NAME), describe_file(folder, weights) if coming is None else coming.file),
        tensors=tensors,
        producer=producer,
        spec_version=stored["spec_version"],
    )
    write_atomic(folder / MANIFEST_NAME, dump_json(manifest.to_json()))


def write_atomic(path: Path, text: str) -> None:
    """Replace a file in one step; its mode follows the umask."""
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _holds(folder: Path, coming: ComingWeights) -> bool:
    """Whether the weights lie there already: someone saved them by hand, and the config after them."""
    path = folder / coming.file.path
    try:
        return path.is_file() and dict(read_tensor_table(path)) == dict(coming.tensors)
    except FileFormatError:
        return False


def _announced(folder: Path, coming: ComingWeights) -> tuple[str, Mapping[str, TensorInfo]]:
    (folder / PICKLE_NAME).unlink(missing_ok=True)
    return coming.file.path, coming.tensors


def _weights(folder: Path, pickled: Mapping[str, TensorInfo] | None) -> tuple[str | None, Mapping[str, TensorInfo]]:
    safe, pickle = (folder / WEIGHTS_NAME), (folder / PICKLE_NAME)
    if pickled is not None and pickle.is_file():
        safe.unlink(missing_ok=True)
        return PICKLE_NAME, pickled
    if safe.is_file():
        pickle.unlink(missing_ok=True)  # weights of an earlier save: the manifest lists one weights file
        return WEIGHTS_NAME, read_tensor_table(safe)
    return None, {}
