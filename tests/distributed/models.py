"""What is trained: a ReFT alone, and a LoRA with a ReFT, on a tiny Llama, on rows of unequal prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from contract.tiny import base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig

KINDS = ("reft", "mixed")
STEPS = 3


def edit_config(**fields: Any) -> ReftConfig:
    """Every block, two units a block, an odd rank, so that shards are of different sizes."""
    given = {"r": 3, "positions": "f2+l2", "share_weights": False, "act_fn": "tanh", "init_weights": "paper", **fields}
    return ReftConfig(task_type="CAUSAL_LM", **given)


def make(kind: str, *, base: nn.Module | None = None) -> PeftModel:
    """A model in float64 whose adapters start far from the identity; the same in every process."""
    base = base_model("llama", dtype=torch.float64) if base is None else base
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind == "reft":
            model = get_peft_model(base, edit_config())
        else:
            lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            model = MixedReftModel.from_configs(base, {"default": lora, "edit": edit_config()})
    return ready(model)


PENALISED = {"heads": {"heads": 4, "sparsity": 0.3}, "distribution": {"penalty": 0.2}}
"""Kinds that add to the loss: of parameters, and of the rows that are edited."""


def penalised(kind: str) -> PeftModel:
    """One of them, at the start of its formula; a distribution whose noise is too small to be seen."""
    component = "heads" if kind == "heads" else "block_output"
    config = edit_config(intervention=kind, options=PENALISED[kind], component=component, act_fn=None)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = ready(get_peft_model(base_model("llama", dtype=torch.float64), config))
        for name, parameter in trained(model).items():
            torch.nn.init.normal_(parameter, std=0.1)
            if "spread" in name:
                torch.nn.init.constant_(parameter, -20.0 if "bias" in name else 0.0)
    return model


def load(kind: str, folder: Path, *, base: nn.Module) -> PeftModel:
    """The same from a saved folder."""
    cls = MixedReftModel if kind == "mixed" else PeftModel
    return ready(cls.from_pretrained(base, str(folder), is_trainable=True))


def ready(model: PeftModel) -> PeftModel:
    """To be trained, in float64, so that what differs is a mistake and not a rounding."""
    for parameter in trained(model).values():
        parameter.data = parameter.data.double()
    return model.train()


def batch(step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Four rows `[4, 10]`, right-padded; each has three supervised tokens, so halves weigh the same."""
    ids = token_ids(4, 10, seed=100 + step)
    prompts = torch.tensor([4, 7, 5, 6])[:, None]
    columns = torch.arange(10)
    supervised = (columns >= prompts) & (columns < prompts + 3)
    given = {
        "input_ids": ids,
        "attention_mask": (columns < prompts + 3).long(),
        "labels": torch.where(supervised, ids, -100),
    }
    return {name: value[rows] for name, value in given.items()}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter that is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Linear in the gradient: Adam divides it by its own size, which blows up the rounding of what should be zero."""
    return torch.optim.SGD(trained(model).values(), lr=0.1, momentum=0.9)


def as_plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, out of DTensors where they are."""
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().cpu().clone()
        for name, t in tensors.items()
    }
