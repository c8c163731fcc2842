"""`python -m benchmarks.speed.environments [pyreft] [adapters]`: makes the peers' virtual environments.

Each is `.venv-<name>` beside the checkout's own, with the peer's last release and the transformers it is pinned to.
pyreft's list of requirements has notebooks, clouds and profilers that nothing here imports: it is installed without,
and what its modules import is named here.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.about import ROOT

__all__ = ["BARE", "REQUIREMENTS", "main"]

TORCH = "torch==2.13.0"
"""First and by version: no later requirement then picks another build."""
REQUIREMENTS = {
    "pyreft": [
        "transformers==4.45.1",
        "huggingface_hub==0.36.0",
        "accelerate==1.10.1",
        "datasets==3.6.0",
        "matplotlib",
        "networkx",
        "numpy>=1.26.4",
        "pandas<3",
        "scikit-learn",
        "seaborn==0.12.2",
        "sentencepiece",
        "protobuf",
        "tqdm",
    ],
    "adapters": ["transformers==4.57.6", "huggingface_hub==0.36.0"],
}
BARE = {"pyreft": ["pyreft==0.1.0", "pyvene==0.1.8"], "adapters": ["adapters==1.3.0"]}
"""Installed without their own requirements."""


def main() -> None:
    """Make those that are named, all if none is; one that is whole already stays."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", choices=[*REQUIREMENTS, []], help="all if left out")
    options.add_argument("--folder", type=Path, default=ROOT)
    options.add_argument("--python", default=sys.executable, help="the interpreter to make them with: 3.11")
    given = options.parse_args()
    for name in given.names or REQUIREMENTS:
        make(name, given.folder / f".venv-{name}", given.python)


def make(name: str, folder: Path, python: str) -> None:
    """One environment; taken away again where a step fails, so that no half of one is measured."""
    whole = folder / "whole"
    if whole.exists():
        print(f"{folder} is there")
        return
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        for words in (
            [python, "-m", "venv", str(folder)],
            [*install, TORCH],
            [*install, TORCH, *REQUIREMENTS[name]],
            [*install, "--no-deps", *BARE[name]],
            [str(folder / "bin" / "python"), "-c", f"import {name}"],
        ):
            subprocess.run(words, check=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    whole.touch()
    print(f"{folder} is made")


if __name__ == "__main__":
    main()
