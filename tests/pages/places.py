"""Where the pages' command lines run: tiny folders of the names that they use, and programs that they call."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from integrations.tiny_sft import PAIRS, base_model, tokenizer
from peft import get_peft_model

from peft_reft import ReftConfig

__all__ = ["NAME", "PLACES", "adapter", "base", "execute", "fitted", "programs", "rows"]

ROOT = Path(__file__).parents[2]
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base that the pages name; a folder of this name is found before the Hub's."""
EXAMPLES = ROOT / "examples" / "distributed"
BOARD = """import sys
from peft import PeftConfig
assert sys.argv[1] == "-v"
print(type(PeftConfig.from_pretrained(sys.argv[2])).__name__)
"""
"""In place of the board's `run.py`: it reads an experiment's folder as that does."""


def base(folder: Path) -> Path:
    """A base with its tokenizer."""
    words = copy.deepcopy(tokenizer())
    words.model_input_names = ["input_ids", "attention_mask"]
    made = base_model()
    made.generation_config.eos_token_id = list(range(1, 64, 3))  # servers go on for 1,024 tokens
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def adapter(folder: Path, positions: str = "f2+l2") -> Path:
    """A ReFT on that base, with the tokenizer beside it."""
    config = ReftConfig(task_type="CAUSAL_LM", r=2, positions=positions, init_weights=False)
    get_peft_model(base_model(), config).save_pretrained(folder)
    return folder


def rows(file: Path) -> None:
    """Prompts and completions, one JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS * 4), "utf-8")


def first_adapter(folder: Path) -> None:
    """What the page's Python has saved."""
    adapter(folder / "dates")


def distributed(folder: Path) -> None:
    """In the example's folder, with rows of one's own."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    base(folder / NAME)
    rows(folder / "rows.jsonl")


def board(folder: Path) -> None:
    """PEFT's folder of comparisons, with our experiments in it."""
    (folder / "run.py").write_text(BOARD, "utf-8")
    (folder / "Makefile").write_text("all:\n\t$(PYTHON) run.py -v $(firstword $(wildcard experiments/*/*))\n", "utf-8")
    shutil.copytree(ROOT / "benchmarks/method_comparison/experiments", folder / "experiments")


PLACES: dict[str, Callable[[Path], None]] = {
    "docs/first_adapter.md": first_adapter,
    "examples/distributed/README.md": distributed,
    "benchmarks/method_comparison/README.md": board,
}
"""Page whose lines `test_shell` executes → what it makes first in the working folder."""


FITTED = {"python train.py": ("On a machine without an accelerator add `", "`")}
"""How a line begins → between what its page says how it runs on this machine."""


def fitted(page: str, line: str) -> str:
    """A line as its page says that it is written where there is no accelerator, and no checkout of that name."""
    for start, (before, after) in FITTED.items():
        if line.startswith(start):
            line += " " + (ROOT / page).read_text("utf-8").partition(before)[2].partition(after)[0]
    return line.replace("/path/to/peft-reft", str(ROOT))


def programs(folder: Path, more: Mapping[str, str] | None = None) -> Path:
    """A folder of programs: this Python under the names that the pages call, and stand-ins.

    Args:
        folder: where it is made.
        more: name of a further program → its text, for a shell.
    """
    folder.mkdir()
    here = shlex.quote(sys.executable)
    texts = {
        "python": f'exec {here} "$@"',
        "peft-reft": f'exec {here} -c "from peft_reft.integrations.cli import main; raise SystemExit(main())" "$@"',
        "torchrun": f'exec {here} -m torch.distributed.run "$@"',
        "accelerate": f'exec {here} -m accelerate.commands.accelerate_cli "$@"',
        **(more or {}),
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", "utf-8")
        (folder / name).chmod(0o755)
    return folder


def execute(lines: str, folder: Path, path: Path, *, timeout: float = 300, **environment: str) -> str:
    """Give lines to a shell in a folder.

    Args:
        lines: as they stand on a page.
        folder: the working folder.
        path: the folder of `programs`.
        timeout: seconds.
        environment: beside this process's.

    Returns:
        What was printed.
    """
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    given = {**os.environ, **quiet, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=folder,
        env=given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout[-4000:]}"
    return done.stdout
