"""The tests of the installed PEFT, from its source distribution, with what is ours in the place of theirs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .configs import PHRASES, TABLES

__all__ = ["PACKAGE", "archive_of", "prepare_tests"]

PACKAGE = "peft_tests"
ABSENT = {
    "diffusers.py": "__version__ = '0.30.0'\n\n\nclass StableDiffusionPipeline:\n    pass\n",
    "parameterized.py": "class parameterized:\n    expand = staticmethod(lambda rows: lambda test: test)\n",
}
"""Stand-ins for libraries that are imported where no test of ours needs them."""


def archive_of(folder: Path) -> Path:
    """The source distribution of the installed PEFT, downloaded into `folder` unless it is there.

    Raises:
        RuntimeError: it cannot be had; the message says why.
    """
    release = f"peft-{version('peft')}"
    archive = folder / f"{release}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        options = ["--no-binary", "peft", "--retries", "1", "--dest", str(folder), release.replace("-", "==")]
        for isolation in (["--no-build-isolation"], []):  # pip asks the builder that is here, or gets one
            done = subprocess.run([*command, *isolation, *options], capture_output=True, text=True, check=False)
            if archive.is_file():
                return archive
        raise RuntimeError(f"the source distribution {archive.name} cannot be had: {done.stderr.strip()[-300:]}")
    return archive


def prepare_tests(archive: Path, folder: Path) -> Path:
    """Unpack and prepare the tests; returns the folder of the package `peft_tests` in `folder`.

    Raises:
        RuntimeError: what is to be replaced is not where it was.
    """
    release = archive.name.removesuffix(".tar.gz")
    target = folder / PACKAGE
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(archive) as opened:
        members = [m for m in opened.getmembers() if m.isfile() and m.name.startswith(f"{release}/tests/")]
        opened.extractall(folder / "unpacked", members, filter="data")
    shutil.move(folder / "unpacked" / release / "tests", target)
    (target / "__init__.py").touch()
    for name, text in ABSENT.items():
        (folder / name).write_text(text)
    for module in dict.fromkeys([*TABLES, *PHRASES]):
        path = target / f"{module}.py"
        path.write_text(_with_ours(path.read_text(), module, TABLES.get(module, {}), f"{path.name} of {release}"))
    return target


def _with_ours(text: str, module: str, tables: Mapping[str, Any], where: str) -> str:
    for theirs, ours in PHRASES.get(module, {}).items():
        if theirs not in text:
            raise RuntimeError(f"{where} has no {theirs!r}")
        text = text.replace(theirs, ours)
    places: dict[int, list[str]] = {}
    for table in tables:
        made = list(re.finditer(rf"^(class )?{table}\b", text, flags=re.MULTILINE))
        place = text.find("\nclass Test", made[-1].end() if made else 0)  # what uses it comes after it
        if place < 0 or not re.search(rf"\b{table}\b", text):
            raise RuntimeError(f"{where} has no {table}")
        places.setdefault(place, []).append(f'{table} = TABLES["{module}"]["{table}"]\n')
    for place in sorted(places, reverse=True):
        lines = ["\nfrom peft_suite.configs import TABLES\n\n", *places[place]]
        text = text[:place] + "".join(lines) + text[place:]
    return text
