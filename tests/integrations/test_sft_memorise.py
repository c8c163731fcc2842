"""The whole way: 24 answers learnt through stock `SFTTrainer` by an adapter alone, generated, saved, loaded elsewhere.

The base is random and frozen: whatever is learnt is in the adapter (about 8,000 parameters).
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from .tiny_sft import COLOURS, THINGS, base_model, pairs, reft, tokenizer, trainer_for

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding_free": {"padding_free": True},
    "packed": {"packing": True, "max_length": 256, "per_device_train_batch_size": 1},
}
QUESTIONS = ["what is", "name the colour of the", "tell me of the", "a"]
FRESH = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
import peft_reft

base, adapter, batch, found = sys.argv[1:]
batch = load_file(batch)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
auto = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
with torch.no_grad():
    save_file({"logits": model(**batch).logits, "auto": auto(**batch).logits}, found)
out = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1]:]
print(json.dumps(AutoTokenizer.from_pretrained(adapter).batch_decode(out, skip_special_tokens=True)))
"""


def rows() -> list[dict[str, str]]:
    """24 different prompts of four to seven tokens, each with one to three random words for an answer."""
    generator = torch.Generator().manual_seed(0)
    words = COLOURS + THINGS
    prompts = [f"{question} {thing} ?" for thing in THINGS for question in QUESTIONS]
    chosen = [prompts[at] for at in torch.randperm(len(prompts), generator=generator)[:24].tolist()]
    found = []
    for prompt in chosen:
        count = int(torch.randint(1, 4, (1,), generator=generator))
        answer = [words[at] for at in torch.randperm(len(words), generator=generator)[:count].tolist()]
        found.append({"prompt": prompt, "completion": " " + " ".join(answer)})
    return found


def prompts_of(data: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """All prompts in one batch, padded on the left."""
    made = copy.deepcopy(tokenizer())
    made.padding_side = "left"
    batch = made([row["prompt"] for row in data], return_tensors="pt", padding=True, return_token_type_ids=False)
    assert (batch["attention_mask"][:, 0] == 0).any()
    return dict(batch)


def exact(answers: Sequence[str], data: Sequence[Mapping[str, str]]) -> float:
    right = [answer == row["completion"].strip() for answer, row in zip(answers, data, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_learns_24_answers_and_keeps_them(tmp_path: Path, layout: str) -> None:
    base_model(hidden=64, blocks=4).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    data = rows()
    fields = {"max_steps": 300, "per_device_train_batch_size": 24, "logging_steps": 50, **LAYOUTS[layout]}
    trainer = trainer_for(
        tmp_path, pairs(data), model=base, given={"peft_config": reft(r=16, init_weights=None)}, **fields
    )
    model, batch = trainer.model, prompts_of(data)
    assert exact(generated(model, batch), data) < 0.1
    trainer.train()
    answers = generated(model, batch)
    assert exact(answers, data) >= 0.95
    with model.disable_adapter():
        assert exact(generated(model, batch), data) < 0.1

    trainer.save_model(str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = model(**batch).logits
    in_process = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(in_process.eval()(**batch).logits, expected)
    save_file(batch, tmp_path / "batch.safetensors")
    places = [str(tmp_path / name) for name in ("base", "adapter", "batch.safetensors", "found.safetensors")]
    run = subprocess.run([sys.executable, "-c", FRESH, *places], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = load_file(places[-1])
    assert torch.equal(found["logits"], expected)
    assert torch.equal(found["auto"], expected)
    assert json.loads(run.stdout.splitlines()[-1]) == answers


def generated(model: PeftModel, batch: Mapping[str, Tensor]) -> list[str]:
    out: Tensor = model.eval().generate(**batch, max_new_tokens=6, do_sample=False)
    answers: list[str] = tokenizer().batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers
