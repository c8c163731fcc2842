"""Between PEFT's save and load verbs and the format: what they write is described, what they load is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from peft_reft.hub_format.errors import AdapterLoadError, IntegrityError, ManifestError
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME
from peft_reft.hub_format.reader import CheckedFolder, check_folder
from peft_reft.hub_format.remote import hub_errors
from peft_reft.hub_format.tensors import TensorInfo
from peft_reft.hub_format.writer import write_adapter_files

from .base_tokenizer import fingerprint_at

if TYPE_CHECKING:
    from .config import ReftConfig

__all__ = ["check_recorded", "check_source", "producer", "save_config", "tensor_info"]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


def producer() -> dict[str, str]:
    """Name and version of this library, as a manifest records it."""
    try:
        return {"name": "peft-reft", "version": version("peft-reft")}
    except PackageNotFoundError:  # run from a copy that was never installed
        return {"name": "peft-reft", "version": "unknown"}


def tensor_info(tensor: Tensor, dtype: str | None = None) -> TensorInfo:
    """dtype, shape and digest of a tensor's bytes; with `dtype`, as if it were stored in that one."""
    name = dtype or _DTYPES.get(tensor.dtype)
    if name not in _BY_NAME:
        raise AdapterLoadError(f"a tensor has dtype {tensor.dtype}, which the format does not store")
    plain = tensor.detach().to("cpu", _BY_NAME[name]).contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return TensorInfo(name, tuple(plain.shape), hashlib.sha256(data).hexdigest())


def save_config(config: ReftConfig, folder: Path, *, auto_mapping: dict[str, Any] | None) -> None:
    """Write config and manifest for the weights that PEFT has just put into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    if auto_mapping is not None:
        stored["auto_mapping"] = auto_mapping
    write_adapter_files(
        folder,
        stored,
        base_model=_base(config),
        producer=producer(),
        pickled_tensors=_pickled_tensors(folder),
    )


def _base(config: ReftConfig) -> dict[str, Any]:
    """Identity of the base, with the tokenizer beside it; where that is out of reach, the one that was recorded."""
    if config.base_identity is None:
        return {}
    fingerprint = fingerprint_at(config.base_tokenizer) or (config.recorded_base or {}).get("tokenizer")
    return {**config.base_identity, **({"tokenizer": fingerprint} if fingerprint else {})}


def check_source(source: str, subfolder: str | None, download: Mapping[str, Any]) -> CheckedFolder | None:
    """Check the folder or Hub repository that an adapter is about to be loaded from.

    A Hub repository is brought into the cache at one revision. PEFT asks for the weights again later; if it is given
    other bytes by then, the digests in the config refuse them.

    Returns:
        Config and manifest; None where PEFT is left to report what is missing, or where there are no weights.

    Raises:
        HubError: a file could not be fetched. PEFT would ask again, and load what nobody checked.
    """
    folder = Path(source, subfolder) if subfolder else Path(source)
    if folder.is_dir():
        settle(folder)
    if (folder / CONFIG_NAME).is_file():
        return check_folder(folder, pickles=True)
    if folder.exists():
        return None  # a folder without a config: PEFT's own message says so
    options = {name: value for name, value in download.items() if name != "subfolder"}
    found = {}
    for name in (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME):
        try:
            with hub_errors(source, options.get("revision")):
                found[name] = hf_hub_download(source, name, subfolder=subfolder, **options)
        except EntryNotFoundError:
            continue
        if name == CONFIG_NAME and (commit := _commit_of(Path(found[name]), subfolder)):
            options["revision"] = commit
    if CONFIG_NAME in found and (WEIGHTS_NAME in found or MANIFEST_NAME in found):
        return check_folder(Path(found[CONFIG_NAME]).parent)
    if CONFIG_NAME in found:
        raise ManifestError(
            f"{source} has a config and no {WEIGHTS_NAME}",
            code="weights.missing",
            value=source,
            fix="load a repository whose adapter was saved in safetensors",
        )
    return None


def check_recorded(recorded: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors that differ from the digests which the config recorded when it was saved.

    Raises:
        IntegrityError: a tensor is missing, extra, or has other bytes.
    """
    present = dict(tensors)
    if set(present) != set(recorded):
        odd = sorted(set(present) ^ set(recorded))[0]
        raise IntegrityError(
            f"tensor {odd[:120]!r} stands in only one of config and weights",
            code="integrity.tensors",
            rule="config and weights were saved together",
            fix="load both from the same folder or revision",
        )
    for name, tensor in present.items():
        same_shape = (
            list(tensor.shape) == recorded[name]["shape"]
        )  # first: a pickled view may be larger than its bytes
        if not same_shape or tensor_info(tensor, recorded[name]["dtype"]).to_json() != recorded[name]:
            raise IntegrityError(
                f"tensor {name[:120]!r} has other bytes than the config recorded",
                code="integrity.tensors",
                rule="config and weights were saved together",
                fix="load both from the same folder or revision, or save the adapter again",
            )


def _commit_of(path: Path, subfolder: str | None) -> str | None:
    folder = path.parent
    for _ in Path(subfolder or "").parts:
        folder = folder.parent
    return folder.name if folder.parent.name == "snapshots" else None


def _pickled_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors of `adapter_model.bin`, where that is the newer of the weights files."""
    pickle, safe = folder / PICKLE_NAME, folder / WEIGHTS_NAME
    if not pickle.is_file() or (safe.is_file() and safe.stat().st_mtime_ns > pickle.stat().st_mtime_ns):
        return None
    weights = torch.load(pickle, map_location="cpu", weights_only=True)
    return {name: tensor_info(tensor) for name, tensor in sorted(weights.items())}
