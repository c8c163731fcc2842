"""What becomes of adapters of one skill each: a router that sends every question to one, and one sum of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.measure import answers
from benchmarks.study.rows import Row, batch_of, in_batches

__all__ = ["Sets", "merged", "routed"]

BATCH = 48
FITTED = 64
"""Training prompts of a skill that a router is fitted on."""
TRIED = (0.0, 0.5, 1.0)
"""Weights that a sum tries for each adapter, once through all."""


@dataclass(frozen=True)
class Sets:
    """A skill's rows: what its adapter learnt from, what choices are made by, what is asked in the end."""

    train: Sequence[Row]
    validation: Sequence[Row]
    held_out: Sequence[Row]


def routed(model: Any, adapters: Sequence[str], skills: Sequence[Sets], pad: int) -> dict[str, Any]:
    """Fit a router on the skills' training prompts; ask every held-out question with the adapter it is sent to.

    Returns:
        `accuracy` and `loss` of each skill; `router`, the share of questions sent to their own skill's adapter;
        `prefills` and `seconds` that a question costs before its answer is begun.
    """
    from peft_reft.continual import SkillRouter

    pairs = list(zip(adapters, skills, strict=True))
    model.eval()
    router = SkillRouter.fit(model, {name: _prompts(one.train[:FITTED], pad) for name, one in pairs})
    report = router.measure(model, {name: _prompts(one.held_out, pad) for name, one in pairs})
    told: dict[str, Any] = {"accuracy": [], "loss": []}
    for _, skill in pairs:
        sent: dict[str, list[Row]] = {}
        for numbers in in_batches(skill.held_out, BATCH):
            asked = [skill.held_out[number] for number in numbers]
            for row, name in zip(asked, router.route(model, **_prompt_batch(asked, pad)), strict=True):
                sent.setdefault(name, []).append(row)
        right, loss, tokens = 0, 0.0, 0
        for name, rows in sent.items():
            model.set_adapter(name)
            found, count = answers(model, rows, pad), sum(len(row.answer) for row in rows)
            right, loss, tokens = right + int(found.right.sum()), loss + found.loss * count, tokens + count
        told["accuracy"].append(right / len(skill.held_out))
        told["loss"].append(loss / tokens)
    return {**told, "router": report.accuracy, "prefills": report.prefills, "seconds": report.seconds}


def merged(model: Any, adapters: Sequence[str], skills: Sequence[Sets], pad: int) -> dict[str, Any]:
    """Make one adapter of all, its weights chosen on validation data; it is the active one afterwards.

    Returns:
        `accuracy` and `loss` of each skill with it, and its `weights`.
    """
    from peft_reft.continual import merge_skills

    validation = {
        str(number): [batch_of([skill.validation[n] for n in numbers], pad) for numbers in _cut(skill.validation)]
        for number, skill in enumerate(skills)
    }
    found = merge_skills(model, validation, "merged", adapters=adapters, grid=TRIED, rounds=1)
    asked = [answers(model, skill.held_out, pad) for skill in skills]
    return {
        "accuracy": [one.accuracy for one in asked],
        "loss": [one.loss for one in asked],
        "weights": [found.weights[name] for name in adapters],
    }


def _prompts(rows: Sequence[Row], pad: int) -> list[dict[str, Any]]:
    return [_prompt_batch([rows[number] for number in numbers], pad) for numbers in _cut(rows)]


def _prompt_batch(rows: Sequence[Row], pad: int) -> dict[str, Any]:
    batch = batch_of([Row(row.prompt, ()) for row in rows], pad)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _cut(rows: Sequence[Row]) -> list[list[int]]:
    return in_batches(rows, BATCH)
