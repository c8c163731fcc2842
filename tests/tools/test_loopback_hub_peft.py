"""Stock PEFT, in processes of its own, through the loopback hub."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tools.loopback_hub import LoopbackHub

pytest.importorskip("peft", reason="needs peft and transformers")

COMMON = """
import sys, torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

def base():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()

def logits(model):
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits
"""
PUSH = """
from huggingface_hub import HfApi
model = get_peft_model(base(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])).eval()
expected = {"v1": logits(model)}
model.push_to_hub("me/x")
HfApi().create_tag("me/x", tag="v1")
with torch.no_grad():
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.mul_(2)
expected["main"] = logits(model)
model.push_to_hub("me/x")
torch.save(expected, sys.argv[1])
"""
LOAD = """
expected = torch.load(sys.argv[1])
assert not torch.equal(expected["v1"], expected["main"])
for revision in ("v1", "main"):
    loaded = PeftModel.from_pretrained(base(), "me/x", revision=revision).eval()
    torch.testing.assert_close(logits(loaded), expected[revision], rtol=0, atol=0)
"""


def run(script: str, hub: LoopbackHub, argument: pathlib.Path) -> None:
    command = [sys.executable, "-c", COMMON + script, str(argument)]
    done = subprocess.run(command, env=os.environ | hub.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lora_loads_by_tag_and_from_main_with_equal_logits(hub: LoopbackHub, tmp_path: pathlib.Path) -> None:
    run(PUSH, hub, tmp_path / "expected.pt")
    run(LOAD, hub, tmp_path / "expected.pt")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= hub.storage.repos["me/x"].resolve(
        "main"
    ).files.keys()
