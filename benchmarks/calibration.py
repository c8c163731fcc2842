"""False discoveries and power of calibrated alignment search: `python -m benchmarks.calibration`.

Searches in untrained networks must find nothing, though a rotation is fitted in each; where a variable was planted at
a random direction they must find it. 100 nulls are shared by all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.measure import environment
from peft_reft.causal import (
    AlignmentSearch,
    Calibration,
    CalibrationWarning,
    CausalModel,
    InterchangeDataset,
    Nulls,
    Site,
    sample_pairs,
)

INPUTS = ("p", "q", "r", "s")
HIDDEN = 16
MODEL = CausalModel(
    {"a": lambda p, q: p != q, "b": lambda r, s: r or s, "v": lambda a, b: a and b},
    inputs=dict.fromkeys(INPUTS, (False, True)),
)
SETTINGS: dict[str, Any] = {"steps": 40, "learning_rate": 0.1, "batch_size": 32}


class Network(nn.Module):
    """Four numbers → a logit, by a layer of tanh and a linear one, `hidden`, in which a variable may stand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, values: Tensor) -> Tensor:
        """`[batch, 4]` → `[batch]`."""
        logit: Tensor = self.last(self.hidden(torch.tanh(self.first(values))))[:, 0]
        return logit


def untrained(seed: int) -> Network:
    """Torch's own start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


@torch.no_grad()
def planted(seed: int) -> Network:
    """a and b along two random directions of `hidden`, from which alone v is read; other numbers beside them."""
    network = untrained(seed)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    sharp = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 1]])  # p and not q, q and not p, r or s
    network.first.weight[:3], network.first.bias[:3] = 6 * sharp, -3.0
    into = 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator)
    into[0], into[1] = 0.0, 0.0
    into[0, :2], into[1, 2] = 0.5, 0.5
    network.hidden.weight.copy_(directions @ into)
    offset = torch.zeros(HIDDEN)
    offset[:2] = torch.tensor([1.0, 0.5])
    network.hidden.bias.copy_(directions @ offset)
    network.last.weight.copy_(10 * (directions[:, 0] + directions[:, 1])[None])
    network.last.bias.fill_(-15.0)
    return network


def encode(rows: Sequence[Any]) -> Tensor:
    """Inputs of the causal model → `[batch, 4]`."""
    return torch.tensor([[float(row[name]) for name in INPUTS] for row in rows])


def decode(output: Tensor) -> list[bool]:
    """The sign of the logit."""
    return [bool(value > 0) for value in output]


def loss(output: Tensor, labels: Any) -> Tensor:
    """Of a logit."""
    return binary_cross_entropy_with_logits(output, torch.tensor(labels, dtype=torch.float32))


PAIRS = InterchangeDataset.from_pairs(MODEL, sample_pairs(MODEL, ["a"], 256, seed=1, changing=0.5))
HELD_OUT = InterchangeDataset.from_pairs(MODEL, sample_pairs(MODEL, ["a"], 200, seed=2, changing=0.5))


def calibration(network: nn.Module, seed: int, nulls: Nulls | int) -> Calibration:
    """Of a search for a, two directions."""
    search = AlignmentSearch(network, MODEL, Site(module="hidden"), {"a": 2}, encode=encode, loss=loss, seed=seed)
    return search.calibrate(PAIRS, HELD_OUT, decode=decode, seed=seed, nulls=nulls, **SETTINGS)


def runs(make: Callable[[int], nn.Module], count: int, first: int, nulls: Nulls) -> list[Calibration]:
    """Calibrations of networks of consecutive seeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return [calibration(make(seed), seed, nulls) for seed in range(first, first + count)]


def table(empty: Sequence[Calibration], full: Sequence[Calibration], seconds: Sequence[float]) -> str:
    """What was found, in words that count."""

    def mean(values: Sequence[float]) -> str:
        return f"{sum(values) / len(values):.1%}"

    search, nulls, each = seconds
    rows = [
        ("networks", "searches", "found", "mean accuracy", "mean of neurons", "mean of the whole vector"),
        ("---",) * 6,
    ]
    for name, found in (("untrained", empty), ("planted", full)):
        rows.append(
            (
                name,
                str(len(found)),
                f"{sum(one.found for one in found)} ({mean([one.found for one in found])})",
                mean([one.accuracy.value for one in found]),
                mean([one.neurons.value for one in found]),
                mean([one.whole.value for one in found if one.whole is not None]),
            )
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    shared = nulls / (len(empty) + len(full))
    lines += [
        "",
        f"{environment()}. {len(INPUTS)} inputs, {HIDDEN} hidden, {SETTINGS['steps']} steps of "
        f"{SETTINGS['batch_size']} pairs, {len(HELD_OUT)} held out. "
        f"A search alone takes {search:.2f} s of this processor, the 100 nulls {nulls:.1f} s once; a calibration with "
        f"its share of them {(each + shared) / search:.1f} searches.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and write the table if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--untrained", type=int, default=200)
    parser.add_argument("--planted", type=int, default=50)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    started = time.process_time()
    alone = AlignmentSearch(untrained(0), MODEL, Site(module="hidden"), {"a": 2}, encode=encode, loss=loss, seed=0)
    alone.fit(PAIRS, seed=0, **SETTINGS)
    alone.accuracy(HELD_OUT, decode=decode)
    search = time.process_time() - started
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        nulls = calibration(untrained(-1 % 2**31), 1_000_000, 100).nulls
    made = time.process_time() - started
    started = time.process_time()
    empty = runs(untrained, given.untrained, 1, nulls)
    full = runs(planted, given.planted, 10_000, nulls)
    each = (time.process_time() - started) / (len(empty) + len(full))
    text = table(empty, full, (search, made, each))
    sys.stdout.write(text)
    if given.out is not None:
        given.out.write_text("# Calibrated alignment search\n\n`python -m benchmarks.calibration`\n\n" + text, "utf-8")


if __name__ == "__main__":
    main()
