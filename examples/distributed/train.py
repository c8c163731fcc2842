"""LoReFT, alone or with a LoRA, in one process or in as many as a launcher starts. See README.md for the launchers.

    python train.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data rows.jsonl --output_dir out

A row of the data is a JSON object with `prompt` and `completion`. Other options than `Arguments` are `SFTConfig`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from trl import SFTConfig, SFTTrainer

from peft_reft import MixedReftModel, ReftConfig


@dataclass
class Arguments:
    """What is trained on what."""

    model: str = field(metadata={"help": "repository or folder of the base model"})
    data: str = field(metadata={"help": "file of JSON lines"})
    rank: int = 4
    positions: str = "f7+l7"
    lora_rank: int = field(default=0, metadata={"help": "of a LoRA that is trained with the edits; 0: none"})


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and save from the first process."""
    # the arguments before the model: under ZeRO-3 they say that its weights are sharded while they load
    given, args = HfArgumentParser((Arguments, SFTConfig)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # before adapters are made: FSDP2 takes a shard of them from every process
    base = AutoModelForCausalLM.from_pretrained(given.model)
    edits = ReftConfig(task_type="CAUSAL_LM", r=given.rank, positions=given.positions)
    if given.lora_rank:
        lora = LoraConfig(task_type="CAUSAL_LM", r=given.lora_rank, target_modules="all-linear")
        model, config = MixedReftModel.from_configs(base, {"default": lora, "edit": edits}), None
    else:
        model, config = base, edits
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=load_dataset("json", data_files=given.data, split="train"),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=config,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
