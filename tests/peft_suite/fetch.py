"""The tests of the installed PEFT, from its source distribution, with our tables in the place of theirs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from .configs import TABLES

__all__ = ["PACKAGE", "fetch_tests"]

PACKAGE = "peft_tests"
NO_DIFFUSERS = "class StableDiffusionPipeline:\n    pass\n"
"""The tests ask `isinstance` of it once; the library itself is not needed."""


def fetch_tests(folder: Path) -> Path:
    """Download, unpack and prepare the tests; returns the folder of the package `peft_tests`.

    Raises:
        RuntimeError: the distribution cannot be had, or a table of configs is not where it was.
    """
    release = f"peft-{version('peft')}"
    archive = folder / f"{release}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
        subprocess.run([*command, "--dest", str(folder), release.replace("-", "==")], check=True)
    target = folder / PACKAGE
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(archive) as opened:
        members = [m for m in opened.getmembers() if m.isfile() and m.name.startswith(f"{release}/tests/")]
        opened.extractall(folder / "unpacked", members, filter="data")
    shutil.move(folder / "unpacked" / release / "tests", target)
    (target / "__init__.py").touch()
    (folder / "diffusers.py").write_text(NO_DIFFUSERS)
    for module, tables in TABLES.items():
        path = target / f"{module}.py"
        text = path.read_text()
        lines = ["from peft_suite.configs import TABLES", ""]
        for table in tables:
            if not re.search(rf"^{table} = ", text, flags=re.MULTILINE):
                raise RuntimeError(f"{path.name} of {release} has no table {table}")
            lines.append(f'{table} = TABLES["{module}"]["{table}"]')
        head, cut, tail = text.partition("\nclass Test")  # the first use of a table
        text = "\n".join([head, *lines, cut]) + tail
        path.write_text(text)
    return target
