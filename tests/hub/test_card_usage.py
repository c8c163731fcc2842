"""The usage lines of a card run as they are: of an adapter at the root, in a folder of its own, and of a bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.loopback_hub import LoopbackHub

SCRIPT = """
import re, torch
from contract.tiny import base_model
from integrations.tiny_sft import tokenizer
from huggingface_hub import hf_hub_download
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from peft_reft import MixedReftModel, ReftConfig, push_to_hub

words = tokenizer()
small = base_model("llama")
small.resize_token_embeddings(max(len(words), 64))
small.push_to_hub("me/base")
words.push_to_hub("me/base")
base = lambda: AutoModelForCausalLM.from_pretrained("me/base")
reft = ReftConfig(task_type="CAUSAL_LM", r=2, positions="l1")
lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
push_to_hub(get_peft_model(base(), reft), "me/root")
push_to_hub(get_peft_model(base(), reft, "edit"), "me/named")
push_to_hub(get_peft_model(base(), reft), "me/added", add="edit")
push_to_hub(MixedReftModel.from_configs(base(), {"default": lora, "edit": reft}), "me/both")
for repo in ("me/root", "me/named", "me/added", "me/both"):
    text = open(hf_hub_download(repo, "README.md"), encoding="utf-8").read()
    (code,) = re.findall(r"```python\\n(.*?)```", text, re.S)
    names = {}
    exec(code, names)
    assert any("reft" in name for name, _ in names["model"].named_parameters()), repo
    print("ran", repo)
"""


def test_the_usage_lines_run_as_they_are(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ran me/") == 4
