"""The blocks of pyreft's and adapters' own code run where `make bench-environments` has made their environments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools.site.blocks import ROOT, blocks

PAGE = "docs/coming_from_pyreft.md"
FOLDER = Path(os.environ.get("PEFT_REFT_ENVIRONMENTS", ROOT))
"""That holds `.venv-pyreft` and `.venv-adapters`."""
MODEL = """import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<pad>": 0, "word": 1}, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<pad>", eos_token="<pad>", model_max_length=16
)
model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=64, n_positions=64))
prompts, answers = ["word word"] * 2, [" word"] * 2
ids = torch.tensor([[5, 9, 11, 23]])
locations = [[[3]]] * 2
"""
BEFORE = {
    "pyreft": "import pyreft\nmodel = model.bfloat16()  # the type of its interventions\n",
    "adapters": "import adapters\nfrom adapters import LoReftConfig\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("peer", BEFORE)
def test_the_peers_code_of_the_page_runs(peer: str, tmp_path: Path) -> None:
    python = FOLDER / f".venv-{peer}" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python.parents[1].name} is not there: make bench-environments")
    found = [code for code in blocks(PAGE, "text") if ("pyreft." in code) == (peer == "pyreft")]
    assert len(found) == {"pyreft": 2, "adapters": 1}[peer]
    program = "\n".join([MODEL, BEFORE[peer], *found])
    done = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
