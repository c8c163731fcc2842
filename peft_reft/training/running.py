"""What a running `Trainer` knows of a forward that the forward is not told: the labels of its batch, its settings.

Trainers take the labels out of a batch before some forwards: for metrics, label smoothing and losses of one's own.
TRL's preference trainers never put them in: they make them of a `completion_mask`, for their losses alone. Such a
forward would be taken for a prefill of prompt and answer. The batch still stands in the trainer's own calls on
Python's stack; from there it is read while the forward starts, and nothing of it is kept.

What this relies on, of transformers 5 and TRL 1: a trainer's methods call their first argument `self`; the batch
stands in a local variable of one of them, as a mapping with the forward's tokens under `input_ids` or a name that ends
so; the labels stand in it as `labels` or `completion_mask` under the same prefix, or in a variable `labels`; or
prompts and answers stand apart, as `prompt_ids` and `completion_ids`. Where a trainer runs and its batch is not found,
as a new version of TRL may have it, the forward is refused with an error that names `ReftDataCollator`, which states
the prompts in every batch: a prompt's end is never guessed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["RunningTrainer", "running_trainer"]

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

    def labels_of(self, call: Mapping[str, Any]) -> tuple[bool, Tensor | None]:
        """Whether a batch of the trainer has the tokens of a forward, and its labels `[batch, seq]`, if it has any.

        Args:
            call: arguments of the forward by name.
        """
        ids = call.get(IDS)
        if not isinstance(ids, Tensor):
            return False, None
        decoder = call.get("decoder_input_ids")
        shape = (decoder if isinstance(decoder, Tensor) else ids).shape
        found = False
        for scope in self._scopes():
            if (labels := _of_two_parts(scope, ids)) is not None:
                return True, labels
            for batch, prefix in _batches(scope, ids):
                found = True
                if _fits(labels := batch.get(f"{prefix}labels"), shape):
                    return True, labels
                if _fits(mask := batch.get(f"{prefix}completion_mask"), shape):
                    return True, ids.masked_fill(mask == 0, -100)
            if not found or not _fits(labels := scope.get("labels"), shape):
                continue
            if decoder is not None or _supervises(labels, ids):  # taken out of the batch, into a variable
                return True, labels
        return found, None

    def is_elsewhere(self) -> bool:
        """Whether the forward is not the trainer's own but one of a callback, which has tokens of its own."""
        handler = sys.modules["transformers.trainer_callback"].CallbackHandler
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            if _is_method(frame) and isinstance(frame.f_locals.get("self"), handler):
                return True
            frame = frame.f_back
        return False

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


def _is_method(frame: FrameType) -> bool:
    return frame.f_code.co_varnames[:1] == ("self",)


def _batches(scope: Mapping[str, Any], ids: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Mappings that hold these tokens, and what stands before `input_ids` in their name: `KL_` and the like."""
    for batch in (value for value in scope.values() if isinstance(value, Mapping)):
        for name, value in batch.items():
            if isinstance(name, str) and name.endswith(IDS) and _same(value, ids):
                yield batch, name.removesuffix(IDS)


def _of_two_parts(scope: Mapping[str, Any], ids: Tensor) -> Tensor | None:
    """Labels where a method holds prompts and answers apart, and these tokens are one behind the other."""
    prompt, answer, mask = (scope.get(name) for name in ("prompt_ids", "completion_ids", "completion_mask"))
    if not _is_batch(prompt) or not _is_batch(answer) or len(prompt) != len(answer):
        return None
    if not _same(torch.cat([prompt, answer], 1), ids):
        return None
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    if isinstance(mask, Tensor) and mask.shape == answer.shape:
        labels[:, prompt.shape[1] :].masked_fill_(mask.to(ids.device) == 0, -100)
    return labels


def _is_batch(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


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
