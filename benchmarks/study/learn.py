"""One skill is learnt: AdamW, a linear rise, a cosine to zero, with what keeps former skills where it is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft import Intervention, parameter_groups
from peft_reft.interventions import has_own_penalty

from .measure import forward, on_answers
from .rows import IGNORED, Row, batch_of

__all__ = ["Learnt", "Penalty", "learn"]

Penalty = Callable[[Any, dict[str, Tensor], Tensor], Tensor]
"""(model, batch, logits) → what is added to the loss."""
WARM = 0.1


@dataclass(frozen=True)
class Learnt:
    """What learning took: seconds of this process, and the loss of the last tenth of the steps."""

    seconds: float
    last_loss: float


def learn(
    model: Any,
    batches: Iterable[list[Row]],
    parameters: list[nn.Parameter],
    *,
    rate: float,
    steps: int,
    pad: int,
    factors: Mapping[str, float] | None = None,
    before: Callable[[Any, dict[str, Tensor]], Tensor] | None = None,
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Learnt:
    """Train the parameters on batches of rows; what kinds add to the loss of their parameters alone is added.

    Args:
        model: PEFT's, or a plain one.
        batches: of rows, as many as `steps`.
        parameters: that learn; the others stay.
        rate: peak of the learning rate.
        steps: batches.
        pad: token of padding.
        factors: tensor of the edits → how many times the rate it learns at.
        before: gives the logits of the model that is to be kept to, without gradients; asked before each step.
        penalty: (logits, logits of the kept model, labels) → an addition to the loss.
    """
    model.train()
    optimiser = torch.optim.AdamW(_groups(model, parameters, rate, factors or {}), lr=rate, weight_decay=0.0)
    penalised = [unit for unit in model.modules() if isinstance(unit, Intervention) and has_own_penalty(unit)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, steps))
    began, losses = time.process_time(), list[float]()
    for rows in batches:
        batch = batch_of(rows, pad)
        kept = None if before is None else before(model, batch)
        if kept is None:
            logits, labels = on_answers(model, batch)
        else:
            whole = forward(model, batch)
            logits, labels = whole[:, :-1], batch["labels"][:, 1:]
        asked = labels != IGNORED
        loss = nn.functional.cross_entropy(logits[asked].float(), labels[asked])
        losses.append(loss.item())
        for unit in penalised:
            loss = loss + unit.penalty()
        if kept is not None and penalty is not None:
            loss = loss + penalty(whole, kept, batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
    last = losses[-max(1, steps // 10) :]
    return Learnt(time.process_time() - began, sum(last) / len(last))


def _groups(model: Any, parameters: list[nn.Parameter], rate: float, factors: Mapping[str, float]) -> Any:
    if not factors:
        return parameters
    return parameter_groups(model, {name: rate * factor for name, factor in factors.items()}, lr=rate)


def _factor(step: int, steps: int) -> float:
    warm = max(1, round(WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
