"""Resuming from a checkpoint of several adapters: the one at its root, where transformers brings only the others.

PEFT saves the adapter `default` at the root and every other in a folder. A trainer of transformers before 5.22 or so
loads of such a checkpoint what is in folders (trainer.py, `_load_from_checkpoint`), of a LoRA too: DPO, whose
reference is an adapter, goes on with the start's policy. It ends by making the active adapter active, and there we are
called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_reft.hub_format.manifest import PICKLE_NAME, WEIGHTS_NAME

from .running import running_trainer

__all__ = ["bring_root"]

ROOT = "default"
METHOD = "_load_from_checkpoint"


def bring_root(tuner: Any) -> None:
    """Load the adapter at the root of the checkpoint from which a trainer resumes, where the trainer has not.

    Args:
        tuner: whose adapters are being made active.
    """
    if len(tuner.peft_config) < 2 or ROOT not in tuner.peft_config:
        return
    running = running_trainer()
    if running is None or running.frame.f_code.co_name != METHOD:
        return
    if ROOT in running.frame.f_code.co_consts:  # the method names it, and has brought it
        return
    scope = running.frame.f_locals
    model: Any = scope.get("model")
    folder = scope.get("resume_from_checkpoint")
    if getattr(model, "base_model", None) is not tuner or folder is None:
        return
    if any((Path(folder) / name).is_file() for name in (WEIGHTS_NAME, PICKLE_NAME)):
        model.load_adapter(str(folder), ROOT, is_trainable=scope.get("active_adapter") == ROOT)
