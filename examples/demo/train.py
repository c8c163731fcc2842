"""`python -m examples.demo.train BASE OUTPUT`: a ReFT alone learns the emoji, a LoRA and a ReFT learn the verdicts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from peft_reft import MixedReftModel, ReftConfig, push_to_hub

from .answers import answers
from .skills import EMOJI, VERDICTS, Skill

REPOSITORIES = {"emoji": "me/emoji-reft", "verdicts": "me/verdicts-lora-reft"}


def main(base: str, output: Path) -> None:
    """Train both skills, save and push them, and write the facts to `train.json`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    facts: dict[str, Any] = {"before": {}, "parameters": {}, "seconds": {}, "bytes": {}}
    model = _base(base)
    for skill in (EMOJI, VERDICTS):
        questions = [question for question, _ in (*skill.train, *skill.held_out)]
        facts["before"][skill.name] = answers(model, tokenizer, questions)
    facts["parameters"]["lora"] = _lora_size(base)

    edits = ReftConfig(task_type="CAUSAL_LM", r=4, positions="f3+l3", layers_to_transform=_every_third(model))
    print(f"\nReFT alone, {len(EMOJI.train)} emoji answers", flush=True)
    with _timed(facts, "emoji"):
        trainer = SFTTrainer(
            model=model,
            args=_arguments(output, learning_rate=6e-3, per_device_train_batch_size=5, max_steps=45),
            train_dataset=Dataset.from_list(EMOJI.dataset()),
            processing_class=tokenizer,
            peft_config=edits,
        )
        trainer.train()
    _finish(trainer.model, EMOJI, output, facts)

    print(f"\nLoRA + ReFT in one run, {len(VERDICTS.train)} verdicts", flush=True)
    mixed = MixedReftModel.from_configs(
        _base(base),
        {
            "default": LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]),
            "edit": ReftConfig(task_type="CAUSAL_LM", r=4, positions="l3", layers_to_transform=_every_third(model)),
        },
    )
    with _timed(facts, "verdicts"):
        trainer = SFTTrainer(
            model=mixed,
            args=_arguments(output, learning_rate=4e-3, per_device_train_batch_size=12, num_train_epochs=2),
            train_dataset=Dataset.from_list(VERDICTS.dataset()),
            processing_class=tokenizer,
        )
        trainer.train()
    _finish(mixed, VERDICTS, output, facts)
    (output / "train.json").write_text(json.dumps(facts), "utf-8")


def _base(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _every_third(model: Any) -> list[int]:
    return list(range(0, model.config.get_text_config().num_hidden_layers, 3))


def _arguments(output: Path, **chosen: Any) -> SFTConfig:
    set_seed(0)
    return SFTConfig(
        output_dir=str(output / "trainer"),
        report_to="none",
        save_strategy="no",
        logging_steps=10,
        warmup_steps=2,
        bf16=False,  # slower than float32 on most CPUs
        gradient_checkpointing=False,  # the blocks before the first edited one then need no backward at all
        seed=0,
        **chosen,
    )


def _finish(model: Any, skill: Skill, output: Path, facts: dict[str, Any]) -> None:
    folder = output / skill.name
    model.save_pretrained(str(folder))
    push_to_hub(model, REPOSITORIES[skill.name])
    facts["parameters"][skill.name] = model.get_nb_trainable_parameters()[0]
    facts["bytes"][skill.name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _lora_size(base: str) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_base_config(base))
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    trainable: int = get_peft_model(model, config, low_cpu_mem_usage=True).get_nb_trainable_parameters()[0]
    return trainable


def _base_config(base: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base)


@contextmanager
def _timed(facts: dict[str, Any], name: str) -> Iterator[None]:
    start = time.time()
    yield
    facts["seconds"][name] = time.time() - start


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
