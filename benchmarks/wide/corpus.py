"""General text that is at hand everywhere: the docstrings of the standard library and of installed packages.

Each file goes whole to the training text or to the held-out text, by a hash of its name, and a paragraph that stood
in an earlier file is dropped, so that none is in both.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["PACKAGES", "Corpus", "corpus", "docstrings", "paragraphs"]

PACKAGES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "peft",
    "sympy",
    "torch",
    "transformers",
    "trl",
)
"""Of permissive licences (Apache-2.0, BSD, PSF-like); with the standard library, of the PSF's."""
HELD_OUT = 40
"""One file of so many is held out."""
MIN_LETTERS = 0.6
"""Share of letters and blanks in a paragraph: tables, doctests and shapes are no general text."""
SHORTEST, LONGEST = 80, 1200
"""Characters of a paragraph."""


@dataclass(frozen=True)
class Corpus:
    """Paragraphs for training and for evaluation, and the versions of the packages that they are from."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    versions: dict[str, str]


def corpus(packages: tuple[str, ...] = PACKAGES) -> Corpus:
    """The text of the packages that are installed, and of the standard library."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    versions, seen = {}, set[str]()
    for package in ("", *packages):
        folder = Path(sysconfig.get_paths()["stdlib"]) if not package else _folder(package)
        if folder is None:
            continue
        versions[package or "standard library"] = _version(package)
        for file in sorted(folder.rglob("*.py")):
            inside = file.relative_to(folder).as_posix()
            if "site-packages" in inside or "/tests/" in f"/{inside}" or "/test/" in f"/{inside}":
                continue
            digest = hashlib.sha256(f"{package}/{inside}".encode()).digest()
            for text in docstrings(file):
                for paragraph in paragraphs(text):
                    key = re.sub(r"\W+", " ", paragraph).lower()
                    if key not in seen:
                        seen.add(key)
                        parts[digest[0] * 256 + digest[1] < 65536 // HELD_OUT].append(paragraph)
    return Corpus(tuple(parts[False]), tuple(parts[True]), versions)


def docstrings(file: Path) -> Iterator[str]:
    """All docstrings of a source file; none of a file that this Python cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's texts
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring that are prose, blanks and line breaks made one blank each."""
    for part in re.split(r"\n\s*\n", text):
        plain = " ".join(part.split())
        letters = sum(sign.isalpha() or sign == " " for sign in plain)
        if (
            SHORTEST <= len(plain) <= LONGEST
            and letters >= MIN_LETTERS * len(plain)
            and plain.isascii()
            and ">>>" not in plain
        ):
            yield plain


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _version(package: str) -> str:
    try:
        return version(package) if package else sysconfig.get_python_version()
    except PackageNotFoundError:
        return "unknown"
