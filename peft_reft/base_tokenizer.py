"""The tokenizer that lies beside a base model: in its folder, or in the Hub's cache at the model's own revision."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

__all__ = ["TokenizerSource", "fingerprint_at", "tokenizer_fingerprint", "tokenizer_source"]

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TokenizerSource = tuple[str, str | None]
"""Folder or repository of a base model, and the commit it was loaded from."""


def tokenizer_source(model: Any) -> TokenizerSource | None:
    """Where a base model's tokenizer would lie; None for a model that was made from its config."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None)
    return (str(name), getattr(config, "_commit_hash", None)) if name else None


def fingerprint_at(source: TokenizerSource | None) -> str | None:
    """The fingerprint of the tokenizer that lies there; None where none does, or none that can be read.

    Nothing is fetched, and no code of a repository is run.
    """
    if source is None:
        return None
    name, revision = source
    if Path(name).is_dir():
        found = [Path(name, file) for file in FILES if Path(name, file).is_file()]
    else:
        found = [Path(path) for file in FILES if isinstance(path := _cached(name, file, revision), str)]
    if not found:
        return None
    state = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)
    return _fingerprint(name, revision, state)


def _cached(name: str, file: str, revision: str | None) -> Any:
    try:
        return try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:  # a path of this machine that is gone
        return None


@lru_cache(maxsize=16)
def _fingerprint(name: str, revision: str | None, state: tuple[tuple[str, int, int], ...]) -> str | None:
    """`state` of the files: what was changed since is read again."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision or "main", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):  # of a kind that is not here
        return None
    return tokenizer_fingerprint(tokenizer)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """`sha256:` of a tokenizer's vocabulary, added tokens included: the JSON of [token, id] pairs, sorted by id."""
    pairs = sorted(([str(token), int(number)] for token, number in tokenizer.get_vocab().items()), key=_by_id)
    return "sha256:" + hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def _by_id(pair: list[Any]) -> tuple[int, str]:
    return pair[1], pair[0]
