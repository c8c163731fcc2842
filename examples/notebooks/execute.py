"""A notebook → the same with its outputs, less what differs from run to run."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.base_model import MODEL_ID

__all__ = ["NOTEBOOKS", "cleaned", "execute", "notebook_named", "read", "write"]

Notebook = dict[str, Any]
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))
SECONDS = 3600
"""After which a cell has failed."""
_CHANGING = ("train_runtime", "Failed to load ", "real_accelerator", "torch/utils/_pytree", "IPKernelApp")
"""What marks a printed line that tells of this run or this machine alone."""
_COLOURS_AND_SECONDS = re.compile(r"\x1b\[[0-9;]*m|'eval_(runtime|\w+_per_second)': '[^']*', ")


def notebook_named(name: str) -> Path:
    """The notebook whose name begins so."""
    found = [path for path in NOTEBOOKS if path.name.startswith(name)]
    if len(found) != 1:
        raise SystemExit(f"{name!r} is the beginning of {len(found)} of {', '.join(path.name for path in NOTEBOOKS)}")
    return found[0]


def read(path: Path) -> Notebook:
    """A notebook's JSON."""
    notebook: Notebook = json.loads(path.read_text("utf-8"))
    return notebook


def write(path: Path, notebook: Notebook) -> None:
    """The JSON as Jupyter writes it."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def execute(notebook: Notebook, environment: Mapping[str, str] | None = None) -> Notebook:
    """Run every cell in a kernel of its own, in an empty folder; needs the extra `notebooks`.

    Args:
        notebook: as `read` gives it; not changed.
        environment: beside this process's.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    opened = nbformat.reads(json.dumps(notebook), as_version=4)
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"PATH": paths, "PYTHONPATH": path, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
        client = NotebookClient(
            opened, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env={**os.environ, **quiet, **(environment or {})})
    return cleaned(json.loads(nbformat.writes(opened)))


def cleaned(notebook: Notebook) -> Notebook:
    """Without errors' streams, colours, and lines that tell of one run or machine; cells are counted from 1."""
    count = 0
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = [output for output in map(_kept, cell["outputs"]) if output is not None]
            for output in cell["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = count
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _kept(output: dict[str, Any]) -> dict[str, Any] | None:
    if output["output_type"] != "stream":
        return output
    if output["name"] == "stderr":
        return None
    text = _COLOURS_AND_SECONDS.sub("", "".join(output["text"]))
    if here := os.environ.get("LESSON_MODEL"):
        text = text.replace(here, MODEL_ID)
    lines = [line for line in text.splitlines(keepends=True) if not any(mark in line for mark in _CHANGING)]
    return {**output, "text": lines} if "".join(lines).strip() else None
