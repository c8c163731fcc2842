"""What a running `Trainer` knows of a forward that the forward is not told: the labels of its batch, its settings.

Trainers take the labels out of a batch before some forwards: for metrics, label smoothing and losses of one's own.
TRL's preference trainers never put them in: they make them of a `completion_mask`, for their losses alone. Such a
forward would be taken for a prefill of prompt and answer. The batch still stands in the trainer's own calls on
Python's stack; from there it is read while the forward starts, and nothing of it is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .trainer_refusals import cuts_rows

__all__ = ["RunningTrainer", "running_trainer", "traced_for_trainer"]

IDS = "input_ids"


@dataclass(frozen=True)
class RunningTrainer:
    """A trainer in whose call we are.

    Attributes:
        trainer: a `transformers.Trainer`.
        frame: of its innermost method that runs.
    """

    trainer: Any
    frame: FrameType

    @property
    def settings(self) -> Any:
        """Its configuration, also while it is being made; None if there is none yet."""
        if (args := getattr(self.trainer, "args", None)) is not None:
            return args
        stated = (scope.get("args") for scope in self._scopes())
        return next((args for args in stated if hasattr(args, "per_device_train_batch_size")), None)

    @property
    def starts(self) -> bool:
        """Whether the trainer is still being made: it prepares its model."""
        return getattr(self.trainer, "model", None) is None

    def trains(self, model: torch.nn.Module) -> bool:
        """Whether a model is the trainer's own, or a part of it."""
        return not self.starts and any(part is model for part in self.trainer.model.modules())

    def labels_of(self, call: Mapping[str, Any]) -> Tensor | None:
        """The labels `[batch, seq]` of the batch whose tokens a forward got; None where its batch has none.

        Args:
            call: arguments of the forward by name.
        """
        ids = call.get(IDS)
        if not isinstance(ids, Tensor):
            return None
        decoder = call.get("decoder_input_ids")
        shape = (decoder if isinstance(decoder, Tensor) else ids).shape
        found = False
        for scope in self._scopes():
            for batch, prefix in _batches(scope, ids):
                found = True
                if _fits(labels := batch.get(f"{prefix}labels"), shape):
                    return labels
                if _fits(mask := batch.get(f"{prefix}completion_mask"), shape):
                    return ids.masked_fill(mask == 0, -100)
            if not found or not _fits(labels := scope.get("labels"), shape):
                continue
            if decoder is not None or _supervises(labels, ids):  # taken out of the batch, into a variable
                return labels
        return None

    def _scopes(self) -> Iterator[Mapping[str, Any]]:
        """The local variables of its methods that run, the innermost first.

        Read one by one as they are asked for: Python keeps what is read until the method ends, and the outer ones are
        loops that last.
        """
        frame: FrameType | None = self.frame
        while frame is not None:
            if _is_method(frame) and (scope := frame.f_locals).get("self") is self.trainer:
                yield scope
            frame = frame.f_back


def running_trainer() -> RunningTrainer | None:
    """The innermost trainer in whose call we are, or None."""
    module = sys.modules.get("transformers.trainer")
    if module is None:  # nobody can have made one
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_method(frame) and isinstance(owner := frame.f_locals.get("self"), module.Trainer):
            return RunningTrainer(owner, frame)
        frame = frame.f_back
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def traced_for_trainer(labelled: bool) -> bool:
    """Where a forward is traced: whether a trainer runs that must be asked. The graph itself sees no stack.

    Args:
        labelled: whether the forward has labels; then only the trainer's settings matter.
    """
    running = running_trainer()
    return running is not None and (not labelled or cuts_rows(running.settings))


def _is_method(frame: FrameType) -> bool:
    return frame.f_code.co_varnames[:1] == ("self",)


def _batches(scope: Mapping[str, Any], ids: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Mappings that hold these tokens, and what stands before `input_ids` in their name: `KL_` and the like."""
    for batch in (value for value in scope.values() if isinstance(value, Mapping)):
        for name, value in batch.items():
            if isinstance(name, str) and name.endswith(IDS) and _same(value, ids):
                yield batch, name.removesuffix(IDS)


def _same(value: Any, ids: Tensor) -> bool:
    if value is ids:
        return True
    return isinstance(value, Tensor) and value.shape == ids.shape and torch.equal(value.to(ids.device), ids)


def _fits(value: Any, shape: torch.Size) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.shape == shape and not value.is_floating_point()


def _supervises(labels: Tensor, ids: Tensor) -> bool:
    """Whether labels are of these tokens: a loop over batches still holds those of the one before."""
    labels = labels.to(ids.device)
    return bool(((labels == ids) | (labels == -100)).all())
