"""One run: a fresh adapter learns one skill, and is measured."""

from __future__ import annotations

import resource
from functools import lru_cache
from typing import Any

from torch import Tensor

from benchmarks.skills.registry import skill
from benchmarks.study.base import Base, load_base
from benchmarks.study.learn import learn
from benchmarks.study.measure import Answers, answers, divergence, text_loss
from benchmarks.study.methods import METHODS, attach, trained
from benchmarks.study.rows import Row, batch_of, drawn, encode
from benchmarks.study.runs import Settings

__all__ = ["base_answers", "base_text_loss", "rows_of", "run"]

DATA_SEED = 0
"""All runs learn from, and are asked, the same examples; seeds change starts and orders."""


def run(settings: Settings) -> dict[str, Any]:
    """Learn and measure; a search is measured on validation data alone, figures on held-out data alone."""
    base = load_base(settings["base"])
    _check_identity(base, settings)
    train, validation, held_out = rows_of(settings["base"], settings["skill"], tuple(settings["sizes"]))
    model = attach(settings["method"], base.make, settings["seed"])
    parameters = trained(model)
    pad = base.tokenizer.pad_token_id
    steps = settings["steps"]
    batches = drawn(train, settings["batch"], steps, settings["seed"])
    factors = METHODS[settings["method"]].factors
    learnt = learn(model, batches, parameters, rate=settings["rate"], steps=steps, pad=pad, factors=factors)
    told: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seconds": round(learnt.seconds, 2),
        "training loss": learnt.last_loss,
    }
    if settings["study"] == "search":
        found = answers(model, validation, pad)
        return {**told, "validation accuracy": found.accuracy, "validation loss": found.loss}
    found = answers(model, held_out, pad, logs=True)
    before = base_answers(settings["base"], settings["skill"], tuple(settings["sizes"]))
    return {
        **told,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "base accuracy": before.accuracy,
        "base loss": before.loss,
        "kl": divergence(_logs(found), _logs(before)),
        "text loss rise": text_loss(model, base.text) - base_text_loss(settings["base"]),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@lru_cache(maxsize=64)
def rows_of(base: str, name: str, sizes: tuple[int, int, int]) -> tuple[list[Row], list[Row], list[Row]]:
    """A skill's sets as token rows."""
    splits = skill(name).splits(sizes, seed=DATA_SEED)
    loaded = load_base(base)
    sets = [encode(loaded, part) for part in (splits.train, splits.validation, splits.held_out)]
    if loaded.prepare is not None:
        loaded.prepare(batch_of([row for part in sets for row in part], loaded.tokenizer.pad_token_id)["input_ids"])
    train, validation, held_out = sets
    return train, validation, held_out


@lru_cache(maxsize=64)
def base_answers(base: str, name: str, sizes: tuple[int, int, int]) -> Answers:
    """The held-out answers of the base itself."""
    loaded = load_base(base)
    return answers(_plain(base), rows_of(base, name, sizes)[2], loaded.tokenizer.pad_token_id, logs=True)


@lru_cache(maxsize=2)
def base_text_loss(base: str) -> float:
    """The base's own loss on the held-out text."""
    return text_loss(_plain(base), load_base(base).text)


@lru_cache(maxsize=1)
def _plain(base: str) -> Any:
    import torch

    return load_base(base).make(torch.bfloat16)


def _logs(found: Answers) -> Tensor:
    if found.logs is None:
        raise ValueError("the answers were measured without their log-probabilities")
    return found.logs


def _check_identity(base: Base, settings: Settings) -> None:
    if settings["identity"] != base.identity:
        raise ValueError(f"the run is of the base {settings['identity']}, and {base.name} is {base.identity} now")
