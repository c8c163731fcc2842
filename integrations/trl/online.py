"""`ReftGRPOTrainer` and `ReftRLOOTrainer`: TRL's own, which refuse at once to generate where edits cannot go."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from trl import GRPOTrainer, RLOOTrainer

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import MergeError

from .cuts import has_reft

__all__ = ["ReftGRPOTrainer", "ReftRLOOTrainer", "refuse_vllm"]


def refuse_vllm(args: Any, model: Any, config: Any) -> None:
    """Refuse generation by vLLM, as a server or beside the trainer, for a policy with ReFT adapters.

    TRL brings a policy to vLLM by merging its adapters into the weights and sending these
    (trl/generation/vllm_generation.py, `merge_adapter`).

    Args:
        args: the trainer's configuration, or None.
        model: as given to a trainer: a name, a plain model or one with adapters.
        config: the trainer's `peft_config`, or None.

    Raises:
        MergeError: see above.
    """
    if not getattr(args, "use_vllm", False) or not (isinstance(config, ReftConfig) or has_reft(model)):
        return
    raise MergeError(
        f"use_vllm=True (vllm_mode={args.vllm_mode!r}) with a policy that has ReFT adapters",
        value=args.vllm_mode,
        rule="TRL sends a policy to vLLM by merging its adapters into the weights, and an edit at chosen token "
        "positions cannot be merged: vLLM would sample from another policy than the one that is trained",
        fix="set use_vllm=False: the trainer then generates with transformers, where edits apply "
        "(use_transformers_continuous_batching=True for many prompts at a time)",
    )


class ReftGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # trl ships no types
    """`GRPOTrainer` with one check more, before a model is made or a server is asked; same arguments.

    A plain `GRPOTrainer` trains ReFT policies too. With `use_vllm=True` it fails when it first sends its weights, in
    the first step; this one fails at the start, whether or not vLLM is installed.

    Raises:
        MergeError: `use_vllm=True`.
    """

    @wraps(GRPOTrainer.__init__)  # type: ignore[misc]  # as above
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments
        refuse_vllm(given.get("args"), given["model"], given.get("peft_config"))
        super().__init__(*args, **kwargs)
        refuse_vllm(self.args, self.model, None)  # of a model that was given by name


class ReftRLOOTrainer(RLOOTrainer):  # type: ignore[misc]  # trl ships no types
    """`RLOOTrainer` with the check of `ReftGRPOTrainer`.

    Raises:
        MergeError: `use_vllm=True`.
    """

    @wraps(RLOOTrainer.__init__)  # type: ignore[misc]  # as above
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(RLOOTrainer.__init__).bind(self, *args, **kwargs).arguments
        refuse_vllm(given.get("args"), given["model"], given.get("peft_config"))
        super().__init__(*args, **kwargs)
        refuse_vllm(self.args, self.model, None)  # of a model that was given by name
