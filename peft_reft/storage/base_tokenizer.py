"""The tokenizer that lies beside a base model: in its folder, or in the Hub's cache at the model's own revision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

from peft_reft.positions.binding import tokenizer_fingerprint

__all__ = ["BaseTokenizer", "base_tokenizer"]

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class BaseTokenizer:
    """Where a tokenizer would lie: folder or repository of a base model, and the commit it was loaded from."""

    name: str
    revision: str | None = None

    def fingerprint(self) -> str | None:
        """The fingerprint of the tokenizer that lies there; None where none does, or none that can be read.

        Nothing is fetched, and no code of a repository is run.
        """
        if Path(self.name).is_dir():
            found = [Path(self.name, file) for file in FILES if Path(self.name, file).is_file()]
        else:
            cached = (_cached(self.name, file, self.revision) for file in FILES)
            found = [Path(path) for path in cached if isinstance(path, str)]
        if not found:
            return None
        state = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)
        return _fingerprint(self.name, self.revision, state)


def base_tokenizer(model: Any) -> BaseTokenizer | None:
    """Where a base model's tokenizer would lie; None for a model that was made from its config."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None)
    return BaseTokenizer(str(name), getattr(config, "_commit_hash", None)) if name else None


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
