"""What a figure was measured on: hardware, versions, and the state of the checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["ROOT", "commit", "of_this_process"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "peft-reft", "pyreft", "pyvene", "adapters")


def of_this_process(device: str) -> dict[str, str]:
    """Hardware, threads, Python, and every package of those that matter which is there."""
    import torch

    told = {"device": torch.cuda.get_device_name() if device != "cpu" else _processor()}
    told |= {"threads": str(torch.get_num_threads()), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            continue
    return told


def commit() -> str:
    """The checkout's, with a sign where tracked files differ from it; `unknown` outside a repository."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    """The model's name; `platform` knows only the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
