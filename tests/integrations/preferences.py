"""Pairs of answers, policies of one part and of two, objectives, and DPO trainers, on the tiny Llama of `tiny_sft`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from trl import DPOConfig, DPOTrainer

from contract.recording import Tokens, differing, inputs_of, raw_outputs_of
from peft_reft import MixedReftModel
from peft_reft.integrations import RepsObjective, SplitObjective
from peft_reft.lookup import reft_layers

from .tiny_sft import BRIEF, PAIRS, base_model, encoded, reft, tokenizer

REJECTED = [" night", " grass and milk and coal", " red", " black"]
ROUTINE = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


def preferences() -> Dataset:
    """The prompts of `PAIRS`, each with the right answer and a wrong one."""
    rows = zip(PAIRS, REJECTED, strict=True)
    return Dataset.from_list(
        [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong} for row, wrong in rows]
    )


def sequences() -> list[tuple[list[int], int]]:
    """(ids, length of the prompt) of a batch: all chosen, then all rejected, made without TRL."""
    wrong = [{"prompt": row["prompt"], "completion": answer} for row, answer in zip(PAIRS, REJECTED, strict=True)]
    return [*encoded(), *encoded(wrong)]


def edit_policy(**fields: Any) -> PeftModel:
    """A ReFT far from its start: what a trained adapter is to a trainer."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(base_model(), reft(**fields))


def mixed_policy(**fields: Any) -> MixedReftModel:
    """A LoRA and a ReFT, both far from their start."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft(**fields)})


POLICIES = {"reft": edit_policy, "lora+reft": mixed_policy}


def dpo_trainer(
    folder: Path, model: nn.Module, *, kind: type[DPOTrainer] = DPOTrainer, given: Any = None, **fields: Any
) -> DPOTrainer:
    """Three steps of one batch of all four pairs."""
    args = DPOConfig(
        **{
            "output_dir": str(folder),
            **BRIEF,
            "gradient_checkpointing": False,
            "seed": 0,
            **ROUTINE,
            **fields,
        }
    )
    data = preferences()
    return kind(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer(), **(given or {})
    )


def history(trainer: Any, key: str) -> list[float]:
    """A logged quantity, one number a step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry and "loss" in entry]


@contextmanager
def edits_of_passes(model: nn.Module) -> Iterator[list[Tokens]]:
    """For every forward in the block the tokens (row, column) that the first block's edit changes.

    Args:
        model: with PEFT's wrapper, or with an adapter that `add_adapter` put on it.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found: list[Tokens] = []
    first, second = (base.get_submodule(f"model.layers.{number}") for number in (0, 1))
    with raw_outputs_of(first) as raw, inputs_of(second) as read:
        yield found
    found += [differing(after, before) for before, after in zip(raw, read, strict=True)]


def ends_of_prompts(batch: Mapping[str, Any], *, first: int, last: int) -> Tokens:
    """`f<first>+l<last>` of right-padded rows, written down by hand from the lengths of their prompts."""
    known = {tuple(ids): length for ids, length in sequences()}
    found = set()
    for row, (ids, mask) in enumerate(zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)):
        prompt = range(known[tuple(ids[: sum(mask)])])
        found |= {(row, column) for column in [*prompt[:first], *prompt[-last:]]}
    return found


VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5)) * 0.3
SPLIT = {"positive_weight": 0.8, "negative_weight": 0.4, "gap_weight": 3.0, "gap": 0.6}


def vector_policy(component: str = "block_output", blocks: Any = (1,)) -> Any:
    """One vector, added at the first and the last two tokens of the prompt after the second block."""
    where = {"component": component, "layers_to_transform": list(blocks)}
    model = get_peft_model(base_model(), reft(intervention="bias", positions="f1+l2", init_weights=True, **where))
    with torch.no_grad():
        for layer in reft_layers(model):
            layer.unit(("default", 0)).shift.copy_(VECTOR)
    return model


OBJECTIVES = {
    "split": SplitObjective(**SPLIT),
    "split both ways": SplitObjective(**SPLIT, factors=(2.0,), opposite=True),
    "reps negated": RepsObjective(factors=(2.0,)),
    "reps nulled": RepsObjective(factors=(2.0,), suppression="nulled"),
}
