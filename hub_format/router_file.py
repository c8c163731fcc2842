"""`skill_router.safetensors`: which adapters a router of skills sends to, and by which numbers. Checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, ReftError
from .reader import FLOATS, check_link, check_regular
from .strict_json import parse_json
from .tensors import read_notes, read_tensor_table, read_values

__all__ = ["NOTE", "VERSION", "WAYS", "RouterFile", "read_router"]

NOTE = "skill_router"
"""The file's one entry of metadata."""
VERSION = 1
WAYS = ("representation", "divergence")
FIELDS = {"version", "adapters", "by", "layer"}


@dataclass(frozen=True)
class RouterFile:
    """What the file says.

    Attributes:
        adapters: names, none twice.
        by: of `WAYS`.
        layer: whole number.
        weight: float32 `[adapters, size]`, finite.
        bias: float32 `[adapters]`, finite.
    """

    adapters: tuple[str, ...]
    by: str
    layer: int
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_router(path: Path) -> RouterFile:
    """Read the file of a router.

    Raises:
        ConfigError: there is none, or it is not what `SkillRouter.save_pretrained` writes.
    """
    try:
        check_link(path)
        check_regular(path)
        table = read_tensor_table(path, check_values=True)
        told = parse_json(read_notes(path).get(NOTE, "").encode(), name=NOTE)
    except (OSError, ReftError) as error:
        raise _refuse(path, f"{type(error).__name__}: {str(error)[:300]}") from error
    adapters = _names(path, told)
    if set(table) != {"weight", "bias"} or any(info.dtype not in FLOATS for info in table.values()):
        raise _refuse(path, f"it holds { ({name[:40]: info.dtype for name, info in list(table.items())[:9]}) }")
    weight, bias = table["weight"].shape, table["bias"].shape
    if len(weight) != 2 or weight[0] != len(adapters) or not weight[1] or bias != (len(adapters),):
        raise _refuse(path, f"tensors of shapes {list(weight)} and {list(bias)}")
    held = {name: values.astype(np.float32) for name, values in read_values(path, table)}
    return RouterFile(adapters, told["by"], told["layer"], held["weight"], held["bias"])


def _names(path: Path, told: Mapping[str, Any]) -> tuple[str, ...]:
    """The adapters, after the check of all that is told beside the tensors."""
    version = told.get("version")
    if type(version) is not int or version != VERSION or set(told) != FIELDS:
        raise _refuse(path, f"version {str(version)[:20]}, or more in it than is known")
    adapters, by, layer = told["adapters"], told["by"], told["layer"]
    named = isinstance(adapters, list) and all(isinstance(name, str) and name for name in adapters)
    if not named or len(set(adapters)) != len(adapters) or by not in WAYS or type(layer) is not int:
        raise _refuse(path, "its names, its way or its layer are none")
    return tuple(adapters)


def _refuse(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path.name} is no router: {why}",
        code="router.file",
        value=str(path.parent.name),
        rule=f"it is what SkillRouter.save_pretrained writes, version {VERSION}",
        fix="fit a router again and save it",
    )
