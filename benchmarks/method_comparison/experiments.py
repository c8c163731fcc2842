"""The experiments: what is compared on PEFT's MetaMathQA board, and the folders that it reads, written from here.

`python -m benchmarks.method_comparison.experiments` writes them anew. The board trains on questions and answers alike
(its labels cover both), so there is no end of a prompt: positions are all tokens, or the first of a sequence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_reft import ReftConfig

__all__ = ["EXPERIMENTS", "FOLDER", "Experiment", "main", "write"]

FOLDER = Path(__file__).parent / "experiments" / "reft"
THIRD = list(range(5, 28, 2))
"""Twelve of Llama-3.2-3B's 28 blocks."""


@dataclass(frozen=True)
class Experiment:
    """Fields of the `ReftConfig`, and what differs from the board's `default_training_params.json`."""

    reft: dict[str, Any]
    training: dict[str, Any]


def _at(rate: float) -> dict[str, Any]:
    return {"optimizer_kwargs": {"lr": rate, "weight_decay": 0.0}}


EXPERIMENTS: dict[str, Experiment] = {
    "llama-3.2-3B-loreft-rank1-all": Experiment({"r": 1, "positions": "all"}, _at(2e-3)),
    "llama-3.2-3B-loreft-rank4-f7": Experiment({"r": 4, "positions": "f7", "layers_to_transform": THIRD}, _at(2e-3)),
    "llama-3.2-3B-loreft-rank4-all": Experiment({"r": 4, "positions": "all", "layers_to_transform": THIRD}, _at(2e-3)),
    "llama-3.2-3B-direft-rank1-all": Experiment({"r": 1, "intervention": "direft", "positions": "all"}, _at(1e-3)),
    "llama-3.2-3B-red-all": Experiment({"intervention": "red", "positions": "all"}, _at(2e-3)),
}
"""Name of a folder → experiment, each of at most 300,000 parameters. Rates are not searched for: no machine here fits
the board's model."""


def write(folder: Path = FOLDER) -> list[Path]:
    """Write `<name>/adapter_config.json` and `<name>/training_params.json` of each; returns the folders."""
    made = []
    for name, experiment in EXPERIMENTS.items():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        ReftConfig(**experiment.reft).save_pretrained(str(target))
        (target / "training_params.json").write_text(json.dumps(experiment.training, indent=2) + "\n", "utf-8")
        made.append(target)
    return made


def main() -> None:
    """Write the folders."""
    for folder in write():
        print(folder)


if __name__ == "__main__":
    main()
