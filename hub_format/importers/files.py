"""Tensor files of other libraries, read without running what a pickle may hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .records import malformed

__all__ = ["finite", "load_tensors"]

MAX_BYTES = 16 * 1024**3


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Name → tensor of a `.bin` or `.safetensors` file.

    torch's weights-only unpickler builds tensors and plain containers and refuses every other class and function.

    Raises:
        FileFormatError: a link, too large, not such a file, or with anything in it but named tensors.
    """
    if path.is_symlink() and "snapshots" not in path.parts:
        raise malformed(path.name, "is a link", "copy the file itself")
    if path.stat().st_size > MAX_BYTES:
        raise malformed(path.name, f"is larger than {MAX_BYTES} bytes")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)  # type: ignore[no-any-return]
        except SafetensorError as error:
            raise malformed(path.name, f"is no safetensors file: {str(error)[:120]}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise malformed(path.name, f"holds more than tensors, or is torn: {reason}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise malformed(path.name, "holds something else than named tensors")
    return loaded


def finite(tensors: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors in float32 and contiguous; NaN or infinity is an error."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise malformed(file, f"tensor {name!r} holds NaN or infinity")
    return {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
