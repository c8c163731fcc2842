"""One run: skills are learnt in an order, and after each all of them are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality.run import base_answers, base_text_loss, rows_of
from benchmarks.study.base import load_base
from benchmarks.study.learn import learn
from benchmarks.study.measure import answers, divergence, forward, text_loss
from benchmarks.study.methods import METHODS, attach
from benchmarks.study.rows import drawn
from benchmarks.study.runs import Settings

from .adapters import Sequence
from .combined import Sets, merged, routed

__all__ = ["run"]

REPLAYED = 0.05
"""Share of a batch that is of former skills."""
ANCHOR = 0.5
"""Weight of the KL divergence from the model before the skill."""


def run(settings: Settings) -> dict[str, Any]:
    """Learn the skills one after another.

    Returns:
        `accuracy` and `loss`, a row for each step with a value for each skill so far and for the next, None for later
        ones; `start`, those of the base; the rise in loss on text at the end; and for each step KL(tuned ‖ base) on
        the prompts of the skill just learnt, and seconds. Where each skill has an adapter of its own, what a router
        (`routed`) and, of ReFTs, a sum of all (`merged`) make of them.
    """
    base = load_base(settings["base"])
    if settings["identity"] != base.identity:
        raise ValueError(f"the run is of the base {settings['identity']}, and {base.name} is {base.identity} now")
    sizes, order, pad = tuple(settings["sizes"]), settings["order"], base.tokenizer.pad_token_id
    rows = {name: rows_of(settings["base"], name, sizes) for name in order}
    before = {name: base_answers(settings["base"], name, sizes) for name in order}
    model = attach(settings["method"], base.make, settings["seed"])
    adapters = Sequence(model, METHODS[settings["method"]], settings["regime"], settings["remedy"] == "orthogonal")
    told: dict[str, Any] = {
        "start": {
            "accuracy": [before[name].accuracy for name in order],
            "loss": [before[name].loss for name in order],
        },
        **{name: [] for name in ("accuracy", "loss", "text loss rise", "kl", "seconds", "parameters")},
    }
    for step, name in enumerate(order):
        seed = settings["seed"] * 100 + step
        parameters = adapters.begin(step, seed)
        replay = [row for former in order[:step] for row in rows[former][0]]
        share = REPLAYED if settings["remedy"] == "replay" else 0.0
        batches = drawn(rows[name][0], settings["batch"], settings["steps"], seed, replay=replay, share=share)
        kept = _kept(parameters) if settings["remedy"] == "anchor" and step else None
        learnt = learn(
            model,
            batches,
            parameters,
            rate=settings["rate"],
            steps=settings["steps"],
            pad=pad,
            factors=adapters.method.factors,
            before=kept,
            penalty=_anchor if kept else None,
        )
        found = []
        for number, asked in enumerate(order[: step + 2]):
            adapters.ask(number, step)
            found.append(answers(model, rows[asked][2], pad, logs=number == step))
        adapters.ask(step, step)
        unasked = [None] * (len(order) - len(found))
        told["accuracy"].append([*(one.accuracy for one in found), *unasked])
        told["loss"].append([*(one.loss for one in found), *unasked])
        own, base_logs = found[step].logs, before[name].logs
        if own is None or base_logs is None:
            raise ValueError("log-probabilities were not kept")
        told["kl"].append(divergence(own, base_logs))
        told["seconds"].append(round(learnt.seconds, 2))
        told["parameters"].append(sum(parameter.numel() for parameter in parameters))
    told["text loss rise"].append(text_loss(model, base.text) - base_text_loss(settings["base"]))
    if settings["regime"] == "switched":
        skills = [Sets(*rows[name]) for name in order]
        told["routed"] = routed(model, adapters.names, skills, pad)
        if adapters.method.family == "reft":
            told["merged"] = merged(model, adapters.names, skills, pad)
            told["merged"]["text loss rise"] = text_loss(model, base.text) - base_text_loss(settings["base"])
    return told


def _kept(parameters: list[nn.Parameter]) -> Callable[[Any, dict[str, Tensor]], Tensor]:
    """Gives the logits of the model as it is now, whatever the parameters are when it is asked; no second model."""
    held = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
        now = [parameter.data for parameter in parameters]
        for parameter, former in zip(parameters, held, strict=True):
            parameter.data = former
        try:
            return forward(model, batch)
        finally:
            for parameter, current in zip(parameters, now, strict=True):
                parameter.data = current

    return logits


def _anchor(logits: Tensor, kept: Tensor, labels: Tensor) -> Tensor:
    """KL(before ‖ now) over the tokens of prompts and answers, a mean per token; [batch, seq, vocabulary]."""
    real = torch.ones_like(labels, dtype=torch.bool)
    former = kept[real].float().log_softmax(-1)
    return ANCHOR * nn.functional.kl_div(
        logits[real].float().log_softmax(-1), former, log_target=True, reduction="batchmean"
    )
