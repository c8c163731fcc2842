"""Losses between what a network gives and the outputs of a causal model, values or distributions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from peft_reft.hub_format.errors import CausalModelError

from .distribution import Distribution

__all__ = ["Loss", "class_loss", "target_probabilities"]

Loss = Callable[[Any, Sequence[Any]], Tensor]
"""What the network returns and the labels of the batch (values or `Distribution`s) → a scalar."""


def class_loss(values: Sequence[Hashable], *, logits: Callable[[Any], Tensor], kl: bool = False) -> Loss:
    """Cross-entropy, or KL divergence, of the network's distribution over the output's values from the labels'.

    Both have the same gradient; KL is zero where the two distributions agree.

    Args:
        values: the output variable's values, in the order of the network's logits.
        logits: what the network returns → `[batch, len(values)]`.
        kl: KL(label ‖ network) instead of cross-entropy.

    Returns:
        (output, labels) → scalar, for `AlignmentSearch`.
    """

    def loss(output: Any, labels: Sequence[Any]) -> Tensor:
        scores = logits(output)
        target = target_probabilities(labels, values).to(scores.device)
        if kl:
            return kl_div(log_softmax(scores.float(), -1), target, reduction="batchmean")
        return cross_entropy(scores.float(), target)

    return loss


def target_probabilities(labels: Sequence[Any], values: Sequence[Hashable]) -> Tensor:
    """Probabilities `[batch, len(values)]` of labels, each a value or a `Distribution`.

    Raises:
        CausalModelError: a label that is not among the values.
    """
    place = {value: index for index, value in enumerate(values)}
    target = torch.zeros(len(labels), len(values))
    for row, label in enumerate(labels):
        for value, probability in label.items() if isinstance(label, Distribution) else [(label, 1.0)]:
            if value not in place:
                raise CausalModelError(
                    f"the causal model gives {value!r}",
                    code="causal.label",
                    value=value,
                    rule=f"the loss knows the values: {', '.join(map(repr, list(values)[:12]))}",
                )
            target[row, place[value]] = probability
    return target


def measured(loss_of: Loss, output: Any, labels: Sequence[Any]) -> Tensor:
    """The loss of a batch, a scalar.

    Raises:
        CausalModelError: the loss fails, or is no scalar tensor.
    """
    try:
        loss = loss_of(output, labels)
    except CausalModelError:
        raise
    except Exception as error:
        raise CausalModelError(
            f"the loss failed on {type(output).__name__} and {len(labels)} labels such as {labels[0]!r}: {error}",
            code="causal.loss",
            value=labels[0],
            rule="it takes what the network returns, and a list of values of the causal model's output",
            fix="take class_loss(values, logits=…), or make a tensor of the labels in a function of your own",
        ) from error
    if not isinstance(loss, Tensor) or loss.dim():
        shown = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise CausalModelError(f"the loss gave {shown}", code="causal.loss", value=shown, rule="a scalar tensor")
    return loss
