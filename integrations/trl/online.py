"""`ReftGRPOTrainer` and `ReftRLOOTrainer`: TRL's own, which refuse at once to generate where edits cannot go."""

from __future__ import annotations

import inspect
from functools import update_wrapper
from typing import Any

from trl import GRPOTrainer, RLOOTrainer

from peft_reft import ReftConfig
from peft_reft.training.refusals import refuse_vllm

from .cuts import has_reft

__all__ = ["ReftGRPOTrainer", "ReftRLOOTrainer"]


def _refuse(args: Any, model: Any, config: Any) -> None:
    if isinstance(config, ReftConfig) or has_reft(model):
        refuse_vllm(args)


class ReftGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # trl ships no types
    """`GRPOTrainer` with one check more, before a model is made or a server is asked; same arguments.

    A plain `GRPOTrainer` trains ReFT policies too. With `use_vllm=True` it fails where it adds an adapter (of the
    policy or the reference), or in the first step if it adds none; this one fails at the start, whether or not vLLM is
    installed.

    Raises:
        MergeError: `use_vllm=True`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments
        _refuse(given.get("args"), given["model"], given.get("peft_config"))
        super().__init__(*args, **kwargs)
        _refuse(self.args, self.model, None)  # of a model that was given by name

    update_wrapper(__init__, GRPOTrainer.__init__)  # the signature and the help of theirs


class ReftRLOOTrainer(RLOOTrainer):  # type: ignore[misc]  # trl ships no types
    """`RLOOTrainer` with the check of `ReftGRPOTrainer`.

    Raises:
        MergeError: `use_vllm=True`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(RLOOTrainer.__init__).bind(self, *args, **kwargs).arguments
        _refuse(given.get("args"), given["model"], given.get("peft_config"))
        super().__init__(*args, **kwargs)
        _refuse(self.args, self.model, None)  # of a model that was given by name

    update_wrapper(__init__, RLOOTrainer.__init__)  # the signature and the help of theirs
