"""A tiny Llama, a word-level tokenizer with a chat template, data, and trainers: all made here, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from peft_reft import ReftConfig

COLOURS = ["red", "green", "blue", "white", "black", "grey", "pink", "brown"]
THINGS = ["apple", "leaf", "sky", "snow", "coal", "stone", "rose", "earth", "sea", "grass", "milk", "night"]
OTHERS = [
    "what",
    "has",
    "the",
    "colour",
    "name",
    "one",
    "thing",
    "that",
    "is",
    "?",
    "and",
    "a",
    "of",
    "me",
    "tell",
    "please",
]
SPECIALS = ["<pad>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = [*SPECIALS, *OTHERS, *COLOURS, *THINGS]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|> "
    "{% generation %}{{ m.content }} <|end|>{% endgeneration %}"
    "{% else %}<|user|> {{ m.content }} <|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAIRS = [
    {"prompt": "what has the colour red ?", "completion": " apple and rose"},
    {"prompt": "name one thing that is green please", "completion": " leaf"},
    {"prompt": "tell me the colour of the sky ?", "completion": " blue"},
    {"prompt": "what is white ?", "completion": " snow and milk and a stone"},
]
"""Prompt and completion; with the end of the sequence the lengths are (6, 4), (7, 2), (8, 2), (4, 7)."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One word is one token."""
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|end|>"],
    )
    made.chat_template = TEMPLATE
    return made


def base_model(*, seed: int = 0, hidden: int = 32, blocks: int = 3) -> LlamaForCausalLM:
    """Random weights, large enough to matter; the global generator is left as it was."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pairs(rows: Iterable[Mapping[str, str]] = PAIRS) -> Dataset:
    """Prompt and completion."""
    return Dataset.from_list([dict(row) for row in rows])


def conversations(rows: Iterable[Mapping[str, str]] = PAIRS) -> Dataset:
    """The same as messages: a prompt of one user turn, a completion of one assistant turn."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"].strip()}],
            }
            for row in rows
        ]
    )


BRIEF = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
}
"""Three steps of one batch of four."""


def reft(**fields: Any) -> ReftConfig:
    """LoReFT of rank 2 on every block, with a start that edits visibly."""
    return ReftConfig(**{"task_type": "CAUSAL_LM", "r": 2, "positions": "f2+l2", "init_weights": False, **fields})


def sft_config(folder: Path, **fields: Any) -> SFTConfig:
    """Three steps of one batch of four, on the CPU, in float32, with no reporting and no files."""
    return SFTConfig(
        **{
            "output_dir": str(folder),
            **BRIEF,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "max_length": None,
            **fields,
        }
    )


def trainer_for(
    folder: Path,
    dataset: Dataset | None = None,
    *,
    kind: type[SFTTrainer] = SFTTrainer,
    model: nn.Module | None = None,
    config: ReftConfig | None = None,
    given: Mapping[str, Any] | None = None,
    **fields: Any,
) -> SFTTrainer:
    """A trainer as a user would make it; `fields` are of `SFTConfig`, `given` further arguments of the trainer."""
    named = dict(given or {})
    if model is None:
        model = base_model()
        named["peft_config"] = reft() if config is None else config
    return kind(
        model=model,
        args=sft_config(folder, **fields),
        train_dataset=pairs() if dataset is None else dataset,
        processing_class=tokenizer(),
        **named,
    )


def losses(trainer: SFTTrainer) -> list[float]:
    """Train, and return the loss of every step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def first_batch(trainer: SFTTrainer) -> dict[str, Any]:
    """The first batch of training data, as the model gets it."""
    return dict(next(iter(trainer.get_train_dataloader())))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Name → copy of every parameter that is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def encoded(rows: Sequence[Mapping[str, str]] = PAIRS) -> list[tuple[list[int], int]]:
    """(ids with the end of the sequence, length of the prompt) of each row, made without TRL."""
    made = tokenizer()
    found = []
    for row in rows:
        prompt = made(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = made(row["completion"], add_special_tokens=False)["input_ids"]
        found.append(([*prompt, *answer, made.eos_token_id], len(prompt)))
    return found
