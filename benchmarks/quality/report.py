"""The table and figure of the study of quality, from its runs alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.study.runs import results_of
from benchmarks.study.statistics import bootstrap, holm, paired_p, seen_effect, shown_p

__all__ = ["REFERENCE", "Block", "Line", "block_sets", "by_block", "front", "lines", "markdown", "told"]

Block = tuple[str, int]
"""A skill and a seed."""

REFERENCE = "lora r8 linear"
"""What every method is compared with."""

LEAST = 0.05
FLOOR = (
    f"**No method answers more than {LEAST:.0%} of the held-out questions: accuracy, its front and its tests say "
    "nothing here, and methods that learnt less also moved less.**"
)


@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        method: its name.
        parameters: that it trains.
        accuracy: mean over the blocks (skill × seed) and its interval over them.
        loss: mean loss per token of held-out answers.
        kl: mean KL(tuned ‖ base) per token of held-out answers.
        text: mean rise in loss on general text, and its interval.
        seconds: of learning, the process's own, mean.
        difference: accuracy minus the reference's, paired by block, with its interval; None without pairs.
        p: of the difference, adjusted by Holm over all methods; None for the reference.
        blocks: how many.
        rate: learning rate.
    """

    method: str
    parameters: int
    accuracy: tuple[float, float, float]
    loss: float
    kl: float
    text: tuple[float, float, float]
    seconds: float
    difference: tuple[float, float, float] | None
    p: float | None
    blocks: int
    rate: float


def block_sets(runs: Iterable[Mapping[str, Any]]) -> list[frozenset[Block]]:
    """The sets of blocks over which methods can be compared; that of the most methods first.

    Each is what some method was run on, and others too: means over other blocks would be of other skills.
    """
    found = {method: frozenset(blocks) for method, blocks in by_block(runs).items()}
    over = {blocks: {method for method, held in found.items() if blocks <= held} for blocks in found.values()}
    kept = [
        blocks
        for blocks, methods in over.items()
        if len(methods) > 2 and not any(blocks < more and methods == over[more] for more in over)
    ]
    return sorted(kept or over, key=lambda blocks: (-len(over[blocks]), -len(blocks)))


def told(blocks: Iterable[Block]) -> str:
    """Skills with their seeds, in words."""
    seeds: dict[str, list[int]] = {}
    for skill, seed in sorted(blocks):
        seeds.setdefault(skill, []).append(seed)
    return "; ".join(f"{skill} {', '.join(map(str, held))}" for skill, held in seeds.items())


def by_block(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[Block, dict[str, Any]]]:
    """Method → block → result, of the study's runs among these, which are of one base and one series."""
    found: dict[str, dict[Block, dict[str, Any]]] = {}
    for settings, result in results_of(list(runs), study="quality"):
        found.setdefault(settings["method"], {})[settings["skill"], settings["seed"]] = result
    return found


def lines(runs: Iterable[Mapping[str, Any]], blocks: frozenset[Block] | None = None) -> list[Line]:
    """A line for each method, by falling accuracy.

    With `blocks` it is of those alone, and of the methods that have them all.
    """
    held_runs = list(runs)
    found = by_block(held_runs)
    told_settings = (settings for settings, _ in results_of(held_runs, study="quality"))
    rates = {settings["method"]: settings["rate"] for settings in told_settings}
    if blocks is not None:
        found = {
            method: {block: held[block] for block in sorted(blocks)}
            for method, held in found.items()
            if blocks <= set(held)
        }
    differences = {
        method: [blocks[block]["accuracy"] - found[REFERENCE][block]["accuracy"] for block in blocks]
        for method, blocks in found.items()
        if method != REFERENCE and REFERENCE in found and set(blocks) <= set(found[REFERENCE])
    }
    adjusted = holm({method: paired_p(values) for method, values in differences.items()})
    made = []
    for method, blocks in found.items():
        held = list(blocks.values())
        made.append(
            Line(
                method,
                held[0]["parameters"],
                bootstrap([one["accuracy"] for one in held]),
                _mean([one["loss"] for one in held]),
                _mean([one["kl"] for one in held]),
                bootstrap([one["text loss rise"] for one in held]),
                _mean([one["seconds"] for one in held]),
                bootstrap(differences[method]) if method in differences else None,
                adjusted.get(method),
                len(held),
                rates[method],
            )
        )
    return sorted(made, key=lambda line: (-line.accuracy[0], line.loss))


def front(made: Iterable[Line]) -> list[Line]:
    """Lines that no other beats in accuracy with as few parameters."""
    kept, best = list[Line](), -math.inf
    for line in sorted(made, key=lambda line: (line.parameters, -line.accuracy[0])):
        if line.accuracy[0] > best:
            kept.append(line)
            best = line.accuracy[0]
    return kept


def markdown(made: list[Line]) -> str:
    """The table, and what its tests can see."""
    on_front = {line.method for line in front(made)}
    rows = [
        "| method | parameters | held-out accuracy | answer loss | KL(tuned ‖ base) | text loss rise | "
        f"seconds | accuracy − {REFERENCE} | p (Holm) | rate |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for line in made:
        name = f"**{line.method}**" if line.method in on_front else line.method
        p = "" if line.p is None else shown_p(line.p)
        rows.append(
            f"| {name} | {line.parameters:,} | {_ranged(line.accuracy)} | {line.loss:.3f} | {line.kl:.3f} | "
            f"{_ranged(line.text)} | {line.seconds:.1f} | {_ranged(line.difference)} | {p} | {line.rate:g} |"
        )
    blocks = min((line.blocks for line in made), default=0)
    floor = [FLOOR, ""] if max((line.accuracy[0] for line in made), default=1.0) < LEAST else []
    return "\n".join(
        [
            *floor,
            *rows,
            "",
            f"{blocks} blocks (skill × seed) a method. In brackets: 95 % bootstrap intervals of the mean over blocks. "
            f"Bold: on the Pareto front of accuracy and parameters. p: sign flips of paired differences, two-sided. "
            f"With so many pairs a paired t test at α .05 would find differences of {seen_effect(blocks):.2f} "
            "standard deviations with power .8; smaller ones cannot be seen here.",
        ]
    )


def _ranged(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
