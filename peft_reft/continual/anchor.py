"""`add_anchor`: a loss term that holds a model to what it was before the skill, in a stock trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

from .former import as_before, evaluating, snapshot

__all__ = ["add_anchor", "kl_to_before"]

ANCHORS = ("kl",)
STATES = ("before", "base")


def add_anchor(
    trainer: Any, anchor: Literal["kl"] = "kl", *, weight: float = 0.1, to: Literal["before", "base"] = "before"
) -> None:
    """Add weight · KL(before ‖ now) to a trainer's loss: stock `SFTTrainer`, or another one with `compute_loss`.

    The mean over the real tokens of each batch, prompts and answers, of the divergence between the next token's
    distribution before the skill and now (learning without forgetting, arXiv 1606.09282, with the model itself as its
    teacher). The distribution before is computed by the same model, its adapters off or with their former parameters:
    no second model, but one forward more without gradients, and one with. What evaluation reports stays as it is.

    Args:
        trainer: made, not yet run; its model is a `PeftModel`.
        anchor: `"kl"`.
        weight: of the term.
        to: `"before"`: the model as it is now, former skills included. `"base"`: the model without adapters, of which
            nothing needs to be kept; the one to use where parameters are sharded.

    Raises:
        ConfigError: a value that is not allowed, no PEFT model, an anchor that is there already, or nothing trained.
    """
    if anchor not in ANCHORS:
        raise ConfigError(f"anchor={anchor!r}", value=anchor, rule=f"it is one of {', '.join(map(repr, ANCHORS))}")
    if to not in STATES:
        raise ConfigError(f"to={to!r}", value=to, rule=f"it is one of {', '.join(map(repr, STATES))}")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ConfigError(f"weight={weight!r}", value=weight, rule="it is a finite number above 0")
    model = getattr(trainer, "model", None)
    if not isinstance(model, PeftModel) or not hasattr(trainer, "compute_loss"):
        kind = type(model).__name__
        raise ConfigError(
            f"the trainer's model is a {kind}",
            value=kind,
            rule="an anchor needs a trainer that computes a loss, and a model with adapters",
            fix="pass peft_config to the trainer, or a PeftModel as its model",
        )
    if isinstance(getattr(trainer, "compute_loss", None), _Anchored):
        raise ConfigError("the trainer has an anchor already", value=anchor, rule="a trainer has one")
    trainer.compute_loss = _Anchored(trainer, float(weight), snapshot(model) if to == "before" else None)


def kl_to_before(now: Tensor, before: Tensor, real: Tensor) -> Tensor:
    """Mean over tokens of KL(before ‖ now): Σ p (log p − log q), p of before.

    Args:
        now: logits `[batch, seq, vocabulary]`.
        before: logits of the same shape, without gradients.
        real: bool `[batch, seq]`, the tokens that count.

    Returns:
        A number; 0 where no token counts.
    """
    new, old = now[real].float().log_softmax(-1), before[real].float().log_softmax(-1)
    if not len(new):
        return now.sum() * 0.0
    return F.kl_div(new, old, log_target=True, reduction="batchmean")


class _Anchored:
    """The trainer's `compute_loss`, with the term.

    Args:
        trainer: whose loss it is.
        weight: of the term.
        state: the parameters before; None for the base.
    """

    def __init__(self, trainer: Any, weight: float, state: dict[str, Tensor] | None) -> None:
        self.trainer = trainer
        self.plain = trainer.compute_loss
        self.weight = weight
        self.state = state

    def __call__(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = model.training
        given = {name: value for name, value in inputs.items() if name != "fused_lm_head"}
        told = self.plain(model, inputs, return_outputs, num_items_in_batch)
        if not training:
            return told
        steps = getattr(self.trainer, "current_gradient_accumulation_steps", 1)
        # a trainer that counts the items of all accumulated batches leaves the mean over these to the loss
        share = 1 / steps if num_items_in_batch is not None else 1.0
        term = self.weight * share * self._term(model, given)
        if return_outputs:
            loss, outputs = told
            return loss + term.to(loss.device), outputs
        return told + term.to(told.device)

    def _term(self, model: Any, given: Mapping[str, Any]) -> Tensor:
        inner = self.trainer.accelerator.unwrap_model(model)
        with as_before(inner, self.state), evaluating(inner):
            before = inner(**given).logits
        now = model(**given).logits
        return kl_to_before(now, before, _real(given, now))


def _real(given: Mapping[str, Any], logits: Tensor) -> Tensor:
    """The tokens that are no padding; those of a packed row, which has no mask, are all real."""
    mask = given.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    ours: Tensor = mask.bool().to(logits.device)
    virtual = logits.shape[1] - ours.shape[1]  # tokens of a tuned prompt stand before
    return F.pad(ours, (virtual, 0), value=False) if virtual > 0 else ours
