"""`python -m examples.causal.tasks`: MIB's tasks on SmolLM2-135M-Instruct, and what each way of looking finds.

Which prompts it answers rightly; then, of pairs of these, each variable exchanged at the last token of a block: by
nothing, by the whole vector, by neurons and by principal components that a mask chooses, by a rotation. One variable
of each task is calibrated. What enters the blocks from `FIRST` on is computed once for each prompt and kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import environment
from benchmarks.study.upper import States, upper_model
from peft_reft.causal import (
    AlignmentSearch,
    Answers,
    Calibration,
    InterchangeDataset,
    Pair,
    Pca,
    Site,
    collect,
    interchange_accuracy,
    untrained_like,
)
from peft_reft.causal.tasks import TASKS, Task, TaskReader
from tools.base_model import ensure_base_model

from .tasks_table import RESULTS, table

__all__ = ["CALIBRATED", "FOLDER", "Upper", "measured"]

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "causal"
FIRST = 24
"""The first block that is run for every pair."""
BLOCKS = (24, 28)
"""Whose output is exchanged."""
ASKED, TRAINED, HELD_OUT = 256, 96, 64
"""Prompts that are asked; pairs that a search is fitted on, and other pairs by which everything is measured."""
CHUNK, AGAIN = 32, 4
"""Pairs that are asked at once, and sources that are drawn for a base at most."""
DTYPE = torch.bfloat16
DIMENSIONS, COMPONENTS = 16, 64
FIT: dict[str, Any] = {"steps": 12, "learning_rate": 0.05, "batch_size": 8}
"""Short, since what is calibrated is fitted in a hundred untrained networks too."""
CALIBRATED = {"ioi": "token", "mcqa": "answer", "arithmetic": "carry"}


class Upper:
    """The blocks of SmolLM2 from one on, which read a task's prompts and give scores of its answers alone.

    Args:
        whole: the model.
        task: what is asked.
        tokenizer: of the model.
        first: the first block.
    """

    def __init__(self, whole: Any, task: Task, tokenizer: Any, first: int) -> None:
        blocks, size = whole.config.num_hidden_layers - first, whole.config.hidden_size
        states = States(lambda: upper_model(whole, blocks, None, DTYPE), tokenizer.pad_token_id, size)
        tokens = Answers.from_tokenizer(whole, tokenizer, task.answers).tokens
        self.values = list(tokens)
        self.first = first
        self.model = upper_model(whole, blocks, states, DTYPE).requires_grad_(False)
        rows = self.model.lm_head.weight[list(tokens.values())]
        self.model.lm_head = nn.Linear(size, len(rows), bias=False, dtype=DTYPE).requires_grad_(False)
        self.model.lm_head.weight.copy_(rows)
        self.network = self._answers(self.model)
        self.reader = TaskReader(task, self.network, tokenizer)

    def _answers(self, model: nn.Module) -> Answers:
        return Answers(model, {value: number for number, value in enumerate(self.values)})

    def untrained(self, seed: int) -> Answers:
        """These blocks before training, on the states that the trained blocks below give."""
        return self._answers(untrained_like(self.model, seed).requires_grad_(False))

    def site(self, block: int) -> Site:
        """The output of a block, of the whole model's number."""
        return Site(layer=block - self.first, position=self.reader.position)

    def search(self, site: Site, variable: str, data: InterchangeDataset, directions: Any = None) -> AlignmentSearch:
        """For a variable, in some dimensions."""
        return AlignmentSearch(
            self.network,
            self.reader.task.causal_model,
            site,
            {variable: DIMENSIONS},
            encode=self.reader.encode,
            loss=self.network.loss(),
            seed=0,
            example=data[0]["base"],
            directions=directions,
        )


def split(upper: Upper, variable: str, bases: list[Any]) -> tuple[list[Pair], list[Pair]]:
    """Pairs to fit on and others, of other bases; all answered rightly, base and source."""
    half = len(bases) // 2
    return drawn(upper, variable, bases[half:], TRAINED), drawn(upper, variable, bases[:half], HELD_OUT)


def drawn(upper: Upper, variable: str, bases: list[Any], count: int) -> list[Pair]:
    """So many pairs, of every counterfactual alike; fewer where the model answers too few. A base may come again."""
    task = upper.reader.task
    wanted = -(-count // len(task.counterfactuals))
    found: list[list[Pair]] = []
    for number, name in enumerate(task.counterfactuals):
        kept: list[Pair] = []
        for again in range(AGAIN):
            left = task.pairs(variable, bases, counterfactual=name, seed=number * AGAIN + again)
            while left and len(kept) < wanted:
                kept, left = kept + upper.reader.kept(left[:CHUNK]), left[CHUNK:]
        found.append(kept)
    return [pair for group in zip(*found, strict=False) for pair in group][:count]


def by_ways(upper: Upper, block: int, variable: str, pairs: tuple[list[Pair], list[Pair]]) -> dict[str, Any]:
    """Each way's accuracy on pairs that nothing was fitted on."""
    reader = upper.reader
    training, held_out = (reader.dataset(part) for part in pairs)
    site = upper.site(block)
    told = {"encode": reader.encode, "decode": upper.network.decode, "batch_size": 16}
    whole = interchange_accuracy(upper.network, reader.task.causal_model, {variable: site}, held_out, **told)
    rows = [item["base"] for item in training]
    states = torch.cat(
        [collect(upper.network, reader.encode(rows[i : i + 16]), site) for i in range(0, len(rows), 16)]
    )
    components = Pca.fit(states, min(COMPONENTS, len(rows) - 1), standardise=False).rotation.matrix
    found = {"nothing": round(whole.unchanged, 4), "whole vector": round(whole.value, 4)}
    for way, directions in (("neurons", "neurons"), ("components", components), ("rotation", None)):
        search = upper.search(site, variable, training, directions)
        search.fit(training, **FIT, seed=0)
        found[way] = round(search.accuracy(held_out, decode=upper.network.decode, batch_size=16).value, 4)
    return {**found, "chance": round(whole.chance, 4), "pairs": whole.total, "fitted": len(training)}


def calibrated(upper: Upper, variable: str, pairs: tuple[list[Pair], list[Pair]]) -> Calibration:
    """At the first of some blocks."""
    training, held_out = (upper.reader.dataset(part) for part in pairs)
    search = upper.search(upper.site(upper.first), variable, training)
    return search.calibrate(training, held_out, decode=upper.network.decode, **FIT, seed=0, untrained=upper.untrained)


def measured(names: list[str], *, calibrate: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Task by task, what was found."""
    source = ensure_base_model()
    whole, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    for name in names:
        started, task = time.process_time(), TASKS[name]
        upper = Upper(whole, task, tokenizer, FIRST)
        inputs = task.inputs(ASKED, seed=0)
        bases = [values for values, good in zip(inputs, upper.reader.right(inputs), strict=True) if good]
        found: dict[str, Any] = {"asked": ASKED, "right": len(bases), "variables": {}}
        for variable in task.variables:
            pairs = split(upper, variable, bases)
            if len(pairs[0]) < TRAINED or len(pairs[1]) < HELD_OUT:
                found["variables"][variable] = f"too few pairs ({len(pairs[0])} to fit on, {len(pairs[1])} others)"
                continue
            found["variables"][variable] = {str(block): by_ways(upper, block, variable, pairs) for block in BLOCKS}
            if calibrate and CALIBRATED[name] == variable:
                result = calibrated(Upper(whole, task, tokenizer, BLOCKS[-1]), variable, pairs)
                found["calibration"] = {"variable": variable, "block": BLOCKS[-1], "text": str(result)}
        yield name, {**found, "seconds": round(time.process_time() - started), "environment": environment()}


def main() -> None:
    """Measure, keep the numbers after each task, print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.causal.tasks", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--no-calibration", action="store_true", help="leave out the searches in untrained networks")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the numbers go")
    given = parser.parse_args()
    path = given.folder / RESULTS
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, found in measured(given.tasks, calibrate=not given.no_calibration):
        results[name] = found
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(f"{name}: {found['right']} of {found['asked']} answered rightly, {found['seconds']} s")
    print(table(results))


if __name__ == "__main__":
    main()
