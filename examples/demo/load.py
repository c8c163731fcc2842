"""`python -m examples.demo.load BASE OUTPUT`: a process that knows only the repositories' names loads and answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_reft import MixedReftModel

from .answers import answers
from .skills import EMOJI, VERDICTS
from .train import REPOSITORIES


def main(base: str, output: Path) -> None:
    """Load both skills from the Hub, answer every question, and write the answers to `load.json`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    after = {}
    for skill, loader in ((EMOJI, PeftModel), (VERDICTS, MixedReftModel)):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = loader.from_pretrained(model, REPOSITORIES[skill.name])
        after[skill.name] = answers(model, tokenizer, [question for question, _ in (*skill.train, *skill.held_out)])
    (output / "load.json").write_text(json.dumps(after), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
