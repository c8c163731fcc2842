"""The usage lines of a card run as they are: of an adapter at the root, in a folder of its own, and of a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from contract.tiny import base_model
from peft_reft import MixedReftModel, ReftConfig, push_to_hub
from tools.loopback_hub import LoopbackHub


def test_the_usage_lines_run_as_they_are(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]")), unk_token="[UNK]")
    base_model("llama").push_to_hub("me/base")
    words.push_to_hub("me/base")

    def base() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained("me/base")

    reft = ReftConfig(task_type="CAUSAL_LM", r=2, positions="l1")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    push_to_hub(get_peft_model(base(), reft), "me/root")
    push_to_hub(get_peft_model(base(), reft, "edit"), "me/named")
    push_to_hub(get_peft_model(base(), reft), "me/added", add="edit")
    push_to_hub(MixedReftModel.from_configs(base(), {"default": lora, "edit": reft}), "me/both")
    for repo in ("me/root", "me/named", "me/added", "me/both"):
        text = Path(hf_hub_download(repo, "README.md")).read_text("utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        names: dict[str, Any] = {}
        capsys.readouterr()
        exec(code, names)
        assert capsys.readouterr().out.strip(), "the lines print an answer"
        assert any("reft" in name for name, _ in names["model"].named_parameters()), repo
