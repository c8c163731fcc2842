"""A bare virtual environment with the wheel and what it declares, used from an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.site.blocks import commands, pages

__all__ = ["EXTRAS", "install_lines", "resolve", "use"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXTRAS = ("trl", "cli", "causal", "evals", "embeddings", "serving", "distributed", "quantised", "study", "demo")
EXTRAS += ("notebooks", "docs", "release", "typing", "all", "dev", "vllm")


def install_lines() -> list[str]:
    """Every line of the site's pages that installs a release, but those with vLLM, which pins another torch."""
    found = dict.fromkeys(line for page in pages() for line in commands(page))
    return [line for line in found if line.startswith('pip install "peft-reft') and "vllm" not in line]


def use(wheel: Path) -> None:
    """Install a wheel without extras, run the first program; then with `cli`, run the command; then as pages say.

    Args:
        wheel: the file.

    Raises:
        subprocess.CalledProcessError: a step failed; what it said is on the terminal.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = _environment(folder / "venv")
        began = time.monotonic()
        _pip(python, "install", _torch())  # first and by version, so that no later requirement picks another build
        _pip(python, "install", str(wheel))
        _say(f"installed in {time.monotonic() - began:.0f} s")
        work = folder / "work"
        work.mkdir()
        shutil.copy(HERE / "program.py", work)
        _run([python, "program.py"], work)
        refused = subprocess.run([python.with_name("peft-reft"), "--help"], cwd=work, capture_output=True, text=True)
        # where others bring what the command needs, it runs
        if refused.returncode and "pip install 'peft-reft[cli]'" not in refused.stderr:
            raise SystemExit(f"without its extra the command said: {refused.stdout}{refused.stderr}")
        _pip(python, "install", f"{wheel}[cli]")
        _run([python.with_name("peft-reft"), "--help"], work)
        _run([python.with_name("peft-reft"), "inspect", "adapter"], work)
        for line in install_lines():
            _say(line)
            asked = shlex.split(line)[2:]
            _pip(python, "install", *(word.replace("peft-reft", str(wheel), 1) for word in asked))
        _run([python, "-m", "pip", "check"], work)


def resolve(extras: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Which versions pip would take for extras, each by itself; nothing is installed.

    Args:
        extras: some of `EXTRAS`.

    Yields:
        Each with the versions that matter most, or with pip's last words where it finds none.
    """
    with tempfile.TemporaryDirectory() as temporary:
        python = _environment(Path(temporary) / "venv")
        _run([python, *_PIP, "install", "--quiet", "--upgrade", "pip"], python.parent)  # newer ones fetch less
        for extra in extras:
            pinned = [] if extra == "vllm" else ["-c", str(ROOT / "constraints.txt")]
            asked = ["install", "--dry-run", "--quiet", "--report", "-", *pinned, f"{ROOT}[{extra}]"]
            done = subprocess.run([str(python), *_PIP, *asked], cwd=temporary, capture_output=True, text=True)
            yield extra, _found(done)


def _found(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        return f"REFUSED: {done.stderr.strip().splitlines()[-1]}"
    listed = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    found = {each["name"].lower(): each["version"] for each in listed}
    shown = [f"{name} {found[name]}" for name in ("torch", "transformers", "peft", "trl") if name in found]
    return f"{len(found)} packages; {', '.join(shown)}"


_PIP = ("-m", "pip", "--disable-pip-version-check")


def _environment(folder: Path) -> Path:
    _run([sys.executable, "-m", "venv", str(folder)], folder.parent)
    return folder / "bin" / "python"


def _torch() -> str:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _pip(python: Path, *words: str) -> None:
    _run([python, *_PIP, words[0], "--quiet", "-c", str(ROOT / "constraints.txt"), *words[1:]], python.parent)


def _run(command: list[str | Path], folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, cwd=folder, env={**clean, "HF_HUB_OFFLINE": "1"}, check=True)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
