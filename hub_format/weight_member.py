"""What is checked of a bundle's LoRA before PEFT builds it: PEFT itself trusts its config and its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError, ManifestError
from .manifest import CONFIG_NAME, WEIGHTS_NAME
from .schema import MAX_RANK
from .strict_json import load_json
from .tensors import TensorInfo, read_tensor_table

__all__ = ["check_weight_member"]

PATTERNS = ("exclude_modules", "layers_pattern", "target_modules")
"""Fields that PEFT reads as a regular expression where they are one text."""
NOT_BUILT = ("layer_replication", "megatron_config")
"""Fields by which PEFT repeats layers as often as they say, or imports the module that `megatron_core` names."""
NAMES = ("alpha_pattern", "exclude_modules", "layers_pattern", "rank_pattern", "target_modules", "target_parameters")
MAX_NAMES = 4096
MAX_ALPHA = 1e9
_PLAIN = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_FIRST = re.compile(r"\.lora_(embedding_)?A(\.|$)")


def check_weight_member(folder: Path, *, allow_patterns: bool = False) -> None:
    """Refuse a weight adapter whose config or weights would harm the process that builds it.

    Args:
        folder: of the adapter.
        allow_patterns: whether regular expressions from the file may run; they can take forever (ReDoS).

    Raises:
        ConfigError: a pattern that was not allowed, or a rank that is none.
        ManifestError: a rank larger than that of the tensors, for which PEFT would allocate.
        FileFormatError: a file that the format does not allow; NaN, infinity and numbers beyond float32 included.
    """
    config = load_json(folder / CONFIG_NAME)
    for name in NOT_BUILT:
        if config.get(name):
            raise _refuse(name, config[name], "a weight adapter of a bundle neither imports code nor adds layers")
    for name in NAMES:
        if isinstance(value := config.get(name), (list, dict)) and len(value) > MAX_NAMES:
            raise _refuse(name, len(value), f"it names at most {MAX_NAMES} modules, each compared with every module")
    _check_alphas(config)
    if not allow_patterns:
        _check_patterns(config)
    table = read_tensor_table(folder / WEIGHTS_NAME, check_values=True)
    if config.get("peft_type") == "LORA":
        _check_rank(config, table)


def _check_patterns(config: Mapping[str, Any]) -> None:
    for name in PATTERNS:
        value = config.get(name)
        if isinstance(value, str) and _PLAIN.fullmatch(value) is None:
            raise _pattern(name, value)
        if name == "layers_pattern" and isinstance(value, list):
            for item in value:
                if not isinstance(item, str) or _PLAIN.fullmatch(item) is None:
                    raise _pattern(name, item)
    for name in ("alpha_pattern", "rank_pattern"):
        value = config.get(name) or {}
        if not isinstance(value, dict):
            raise _refuse(name, value, "it is an object")
        for key in value:
            if _PLAIN.fullmatch(key) is None:
                raise _pattern(name, key)


def _check_alphas(config: Mapping[str, Any]) -> None:
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _refuse("alpha_pattern", patterns, "it is an object")
    for alpha in (config.get("lora_alpha", 1), *patterns.values()):
        if type(alpha) not in (int, float) or not abs(alpha) <= MAX_ALPHA:
            raise _refuse("lora_alpha", alpha, f"it is a number, at most {MAX_ALPHA:.0e}")


def _check_rank(config: Mapping[str, Any], table: Mapping[str, TensorInfo]) -> None:
    ranks = config.get("rank_pattern") or {}
    if not isinstance(ranks, dict):
        raise _refuse("rank_pattern", ranks, "it is an object")
    asked = [config.get("r"), *ranks.values()]
    for rank in asked:
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise _refuse("r", rank, f"a rank is an integer from 1 to {MAX_RANK}")
    held = [info.shape[0] for name, info in table.items() if _FIRST.search(name) and info.shape]
    if max(asked) > max(held, default=0):
        raise ManifestError(
            f"the LoRA's config asks for rank {max(asked)}, its tensors have at most {max(held, default=0)}",
            code="tensors.unfit",
            file=WEIGHTS_NAME,
            rule="nothing is allocated that no tensor fills",
        )


def _pattern(name: str, value: object) -> ConfigError:
    return ConfigError(
        f"{name} holds the pattern {repr(value)[:80]}",
        code="bundle.pattern",
        file=CONFIG_NAME,
        value=value,
        rule="a regular expression from a file is not run: it may never end",
        fix="save the LoRA with a list of module names, or pass allow_patterns=True if you trust its author",
    )


def _refuse(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{name}={repr(value)[:80]} is not allowed", file=CONFIG_NAME, value=value, rule=rule)
