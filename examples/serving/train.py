"""`python -m examples.serving.train BASE OUTPUT`: one small ReFT for each voice, kept from one run to the next."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from peft_reft import ReftConfig

from .voices import QUESTIONS, VOICES


def main(base: str, output: Path) -> None:
    """Train the voices that are not there yet."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, answers in VOICES.items():
        if (output / name / "reft_manifest.json").is_file():
            continue
        print(f"\n{name}: {len(answers)} answers", flush=True)
        set_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        layers = list(range(0, model.config.num_hidden_layers, 3))
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                str(output / "trainer"),
                max_steps=40,
                learning_rate=6e-3,
                warmup_steps=2,
                per_device_train_batch_size=len(answers),
                bf16=False,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_steps=10,
                report_to="none",
                seed=0,
            ),
            train_dataset=Dataset.from_list(
                [
                    {
                        "prompt": [{"role": "user", "content": question}],
                        "completion": [{"role": "assistant", "content": answer}],
                    }
                    for question, answer in zip(QUESTIONS, answers, strict=True)
                ]
            ),
            processing_class=tokenizer,
            peft_config=ReftConfig(task_type="CAUSAL_LM", r=4, positions="f3+l3", layers_to_transform=layers),
        )
        trainer.train()
        trainer.model.save_pretrained(str(output / name))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
