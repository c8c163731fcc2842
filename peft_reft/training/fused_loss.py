"""Penalties where TRL computes the loss itself, of the log-probabilities that its fused head gives.

`SFTTrainer` takes Σ −log p over the supervised tokens, divided by their number in the whole accumulated batch
(trl/trainer/sft_trainer.py, `compute_loss`). A penalty P taken off the log p of each of them is then P once a step,
whatever is accumulated or averaged. Losses that are no such mean would weigh it by something else: they are refused.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.penalties import register_reader

from .running import running_trainer

__all__ = ["in_fused_output"]


def in_fused_output(output: Any, penalty: Tensor) -> None:
    """Take a penalty off what a trainer of TRL makes its loss of; other outputs are left alone.

    Raises:
        ConfigError: a trainer whose loss is no mean of log-probabilities.
    """
    if not isinstance(output, MutableMapping) or not {"log_probs", "label_mask"} <= set(output):
        return
    running = running_trainer()
    if running is None:
        return
    module = sys.modules.get("trl.trainer.sft_trainer")
    trainer, own = running.trainer, None if module is None else module.SFTTrainer
    loss = getattr(running.settings, "loss_type", None)
    if own is None or not isinstance(trainer, own) or loss != "nll":
        raise ConfigError(
            f"an adapter has a penalty, and {type(trainer).__name__} (loss_type={loss!r}) makes its loss of "
            "log-probabilities",
            value=loss,
            rule="a penalty is added to the loss that a model gives, or to the mean that SFTTrainer's 'nll' is",
            fix="set the options `penalty` and `sparsity` to 0, or train with SFTTrainer and loss_type='nll'",
        )
    log_probs, supervised = output["log_probs"], output["label_mask"]
    output["log_probs"] = log_probs - penalty.to(log_probs.dtype) * supervised.to(log_probs.dtype)


register_reader(in_fused_output)
