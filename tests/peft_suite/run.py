"""Runs PEFT's tests of our configs in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .configs import TABLES
from .fetch import archive_of, prepare_tests
from .stand_ins import MODELS, make_cache

__all__ = ["run_suite"]

TESTS = Path(__file__).parents[1]


def run_suite(
    folder: Path,
    arguments: Sequence[str] = (),
    *,
    modules: Sequence[str] = tuple(TABLES),
    models: Sequence[str] = tuple(MODELS),
    downloads: Path | None = None,
    output: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Fetch, prepare and run.

    Args:
        folder: where the prepared tests and models are written.
        arguments: for pytest.
        modules: PEFT's test files, without their ending.
        models: names of the stand-in models that are made.
        downloads: where the source distribution is kept; `folder` unless given.
        output: `subprocess.PIPE` to get what pytest prints.

    Raises:
        RuntimeError: PEFT's source distribution cannot be had, or is not as expected.
    """
    package = prepare_tests(archive_of(downloads or folder), folder)
    make_cache(folder / "home", models)
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]),
    }
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-q"]
    files = [str(package / f"{module}.py") for module in modules]
    plugins = ["-p", "peft_suite.plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *plugins, *arguments, *files], env=environment, check=False, cwd=folder, stdout=output, text=True
    )
