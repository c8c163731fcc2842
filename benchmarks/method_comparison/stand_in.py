"""Runs PEFT's own `run.py`, unchanged, where its model, its data and its GPU cannot be had: a test of the folders.

`python -m benchmarks.method_comparison.stand_in PEFT/method_comparison/MetaMathQA NAME`: SmolLM2-135M-Instruct stands
for Llama-3.2-3B, sums in words for MetaMathQA and GSM8K, licence texts for the articles, the processor for the GPU.
What comes out says that an experiment runs to its end, not how good it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from .experiments import EXPERIMENTS, FOLDER
from .with_reft import main as run_with_reft

__all__ = ["Processor", "main", "run", "sums"]

SMALL = {
    "max_steps": 8,
    "eval_steps": 4,
    "batch_size_eval": 25,
    "generation_kwargs": {"max_length": 60, "max_new_tokens": 12},
}
WITHOUT_MEMORY = ("reset_peak_memory_stats", "manual_seed_all", "empty_cache")
ARTICLE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
    "documentation files, to deal in the Software without restriction, including without limitation the rights to "
    "use, copy, modify, merge, publish, distribute, sublicense, and sell copies of the Software. "
)


class Processor(str):
    """The text "cpu", which passes where "cuda" or "xpu" is asked for: the board's script refuses others at once."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in ("cpu", "cuda")

    def __hash__(self) -> int:
        return hash("cpu")


def sums(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions and answers in the form of GSM8K's; different seeds give different ones."""
    random, found = Random(seed), []
    for _ in range(count):
        one, other = random.randint(1, 50), random.randint(1, 50)
        found.append((f"Ann has {one} apples and gets {other}. How many has she?", f"The answer is: {one + other}"))
    return found


def run(board: Path, name: str, model: str, output: Path) -> dict[str, Any]:
    """Run one experiment and give what PEFT's script wrote of it.

    Args:
        board: `method_comparison/MetaMathQA` of a checkout of PEFT; it is copied, not changed.
        name: of `EXPERIMENTS`.
        model: folder of a base.
        output: an empty folder to run in.
    """
    for file in [*board.glob("*.py"), board / "default_training_params.json"]:
        shutil.copyfile(file, output / file.name)
    target = output / "experiments" / "reft" / name
    shutil.copytree(FOLDER / name, target)
    training = json.loads((target / "training_params.json").read_text("utf-8"))
    (target / "training_params.json").write_text(json.dumps({**training, **SMALL, "model_id": model}), "utf-8")
    for folder in ("results", "temporary_results", "cancelled_results"):
        (output / folder).mkdir()
    _stand_in(output)
    here = Path.cwd()
    os.chdir(output)
    try:
        run_with_reft(["run.py", "-v", "--clean", f"experiments/reft/{name}"])
    finally:
        os.chdir(here)
    found = [*output.glob("*results/*.json")]
    told: dict[str, Any] = json.loads(found[0].read_text("utf-8"))
    return told


def _stand_in(scripts: Path) -> None:
    """Put the stand-ins where the script looks, in this process."""
    import importlib

    import datasets
    import peft.utils
    import torch

    cpu: Any = torch.cpu
    for name in WITHOUT_MEMORY:
        setattr(cpu, name, lambda *_: None)
    for name in ("max_memory_reserved", "memory_allocated", "memory_reserved"):
        setattr(cpu, name, lambda *_: 0)
    cpu.get_device_name = lambda *_: "cpu"
    if "bitsandbytes" not in sys.modules:
        stub: Any = ModuleType("bitsandbytes")
        stub.__version__, stub.__path__ = "none", ["site-packages"]
        sys.modules["bitsandbytes"] = stub
    datasets.load_dataset = _data
    sys.path.insert(0, str(scripts))
    peft.utils.infer_device = lambda: Processor("cpu")
    utils: Any = importlib.import_module("utils")  # here it looks for a device
    utils.device = "cpu"
    for module in (peft.utils, utils):
        module.infer_device = lambda: "cpu"


def _data(path: str, *_: object, **__: object) -> Any:
    from datasets import Dataset

    if path.endswith("MetaMathQA"):
        held = sums(400, 0)
        rows = {"query": [q for q, _ in held], "response": [a for _, a in held]}
        return {"train": Dataset.from_dict({**rows, "type": rows["query"], "original_question": rows["query"]})}
    if path.endswith("gsm8k"):
        made = {}
        for number, split in enumerate(("train", "test"), start=1):
            held = sums(60, number)
            answers = [f"#### {a.removeprefix('The answer is: ')}" for _, a in held]
            made[split] = Dataset.from_dict({"question": [q for q, _ in held], "answer": answers})
        return _Splits(made)
    return Dataset.from_dict({"text": [f"{number}. {ARTICLE * 2}" for number in range(6)]})


class _Splits(dict[str, Any]):
    """As `DatasetDict` in the one thing that is asked of it."""

    def rename_columns(self, names: dict[str, str]) -> _Splits:
        return _Splits({split: rows.rename_columns(names) for split, rows in self.items()})


def main() -> None:
    """Run an experiment, print what the script wrote."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("board", type=Path, help="method_comparison/MetaMathQA of a checkout of PEFT")
    options.add_argument("name", choices=EXPERIMENTS)
    given = options.parse_args()
    from tools.base_model import ensure_base_model

    with tempfile.TemporaryDirectory() as folder:
        told = run(given.board.resolve(), given.name, str(ensure_base_model()), Path(folder))
    shown = {name: told["train_info"][name] for name in ("status", "num_trainable_params", "file_size", "metrics")}
    print(json.dumps({**shown, "error": told["run_info"]["error_msg"]}, indent=1))


if __name__ == "__main__":
    main()
