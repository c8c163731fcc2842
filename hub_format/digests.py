"""Tensors in memory → what a file says of them: dtype, shape, digest. Beside the importers the one file with torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import AdapterLoadError, IntegrityError
from .manifest import PICKLE_NAME, WEIGHTS_NAME
from .tensors import TensorInfo

__all__ = ["check_recorded", "dtype_name", "pickled_tensors", "tensor_info"]

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


def dtype_name(tensor: Tensor) -> str | None:
    """A tensor's dtype as files spell it; None where the format does not store it."""
    return _DTYPES.get(tensor.dtype)


def tensor_info(tensor: Tensor, dtype: str | None = None) -> TensorInfo:
    """dtype, shape and digest of a tensor's bytes; with `dtype`, as if it were stored in that one."""
    name = dtype or dtype_name(tensor)
    if name not in _BY_NAME:
        raise AdapterLoadError(f"a tensor has dtype {tensor.dtype}, which the format does not store")
    plain = tensor.detach().to("cpu", _BY_NAME[name]).contiguous()
    bits = plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain  # of which numpy has none
    data: Any = bits.numpy().reshape(-1)
    return TensorInfo(name, tuple(plain.shape), hashlib.sha256(data).hexdigest())


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
                fix="load both from the same folder or revision, or save the adapter again; for a fresh adapter make "
                "a config anew, since one that was read from a folder vouches for that folder's weights",
            )


def pickled_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors of `adapter_model.bin`, where that is the newer of the weights files."""
    pickle, safe = folder / PICKLE_NAME, folder / WEIGHTS_NAME
    if not pickle.is_file() or (safe.is_file() and safe.stat().st_mtime_ns > pickle.stat().st_mtime_ns):
        return None
    weights = torch.load(pickle, map_location="cpu", weights_only=True)
    return {name: tensor_info(tensor) for name, tensor in sorted(weights.items())}
