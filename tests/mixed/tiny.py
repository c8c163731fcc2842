"""A LoRA and a ReFT on a tiny Llama, trained by TRL on made-up words; run as a module, one training run."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from contract.tiny import VOCABULARY, base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig

STEPS = 6


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, **fields}
    )


def reft(**fields: Any) -> ReftConfig:
    return ReftConfig(**{"task_type": "CAUSAL_LM", "r": 2, "positions": "f2+l2", "dropout": 0.2, **fields})


def mixed_model(*, strong: bool = False, base: nn.Module | None = None, **more: Any) -> MixedReftModel:
    """`strong`: both parts start far from the identity."""
    configs = {
        "default": lora(init_lora_weights=not strong),
        "edit": reft(init_weights=False if strong else None),
        **more,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return MixedReftModel.from_configs(base_model("llama") if base is None else base, configs)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, VOCABULARY))]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def rows() -> Dataset:
    """Eight prompts of 4 to 7 words with answers of 2."""
    ids = token_ids(8, 9).tolist()
    return Dataset.from_list(
        [
            {
                "prompt": " ".join(f"w{i}" for i in row[: 4 + n % 4]),
                "completion": " " + " ".join(f"w{i}" for i in row[7:]),
            }
            for n, row in enumerate(ids)
        ]
    )


class KilledAt(TrainerCallback):  # type: ignore[misc]
    """Ends the process as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_for(folder: Path, *, callbacks: tuple[TrainerCallback, ...] = (), **fields: Any) -> SFTTrainer:
    args = SFTConfig(
        **{
            "output_dir": str(folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            **fields,
        }
    )
    data = rows()
    return SFTTrainer(
        model=mixed_model(),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    trainer = trainer_for(given.folder, callbacks=(KilledAt(given.kill_at),) if given.kill_at else ())
    trainer.train(resume_from_checkpoint=True if given.resume else None)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    torch.save((dict(trainer.model.named_parameters()), losses), given.folder / "result.pt")


if __name__ == "__main__":
    main()
