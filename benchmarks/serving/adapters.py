"""The adapters that are served: a few folders of each kind, each of which stands for many names.

What an adapter's numbers are takes no time, so a name loads one of `FOLDERS` folders; an engine cannot know, and holds
and moves each name's tensors for themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

__all__ = ["FOLDERS", "KINDS", "LORA_RANK", "MEANING", "REFT_RANK", "TARGETS", "folder_of", "write_adapters"]

FOLDERS = 8
POSITIONS = "f7+l7"
REFT_RANK, LORA_RANK = 4, 8
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = {"lora": LINEAR, "lora_qv": ("q_proj", "v_proj")}
KINDS = ("ours", *TARGETS)
MEANING = {
    "base": "the base without adapters",
    "ours": f"ReFT, loreft r {REFT_RANK}, {POSITIONS}, tied, all layers",
    "lora": f"vLLM's multi-LoRA, r {LORA_RANK}, all linear projections",
    "lora_qv": f"vLLM's multi-LoRA, r {LORA_RANK}, q and v",
}


def folder_of(where: Path, kind: str, number: int) -> Path:
    """The folder that stands for adapter `number` of a kind."""
    return where / kind / str(number % FOLDERS)


def write_adapters(where: Path, base: str) -> None:
    """Write the folders that are not there yet: random adapters that change what the base says."""
    for kind in KINDS:
        if folder_of(where, kind, FOLDERS - 1).is_dir():
            continue
        partial = where / f"{kind}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _write(partial, kind, base)
        partial.rename(where / kind)


def _write(where: Path, kind: str, base: str) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = get_peft_model(model, _config(kind), adapter_name="default")
        for number in range(FOLDERS):
            for name, parameter in made.named_parameters():
                if "reft_" in name or "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
            made.save_pretrained(str(where / str(number)))


def _config(kind: str) -> Any:
    from peft import LoraConfig

    from peft_reft import ReftConfig

    if kind == "ours":
        return ReftConfig(task_type="CAUSAL_LM", r=REFT_RANK, positions=POSITIONS, init_weights=False)
    return LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=list(TARGETS[kind]))
