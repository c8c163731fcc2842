"""The recipes: the code of every page runs from top to bottom, with tiny models under the names that it uses."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from integrations.tiny_sft import base_model, tokenizer
from parity.golden import COPIED

from contract.vision import vision_model

FOLDER = Path(__file__).parents[2] / "docs" / "recipes"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
PARTS = ("**Goal:**", "**What to look at.**", "**What goes wrong.**")


def causal(place: Path) -> None:
    base_model().save_pretrained(place)
    words().save_pretrained(place)


def bert(place: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}
    hf.BertModel(hf.BertConfig(**sizes, vocab_size=64)).save_pretrained(place)
    words().save_pretrained(place)


def words() -> Any:
    made = copy.deepcopy(tokenizer())
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def copied(name: str) -> Callable[[Path], None]:
    return lambda place: shutil.copytree(COPIED / name, place)  # type: ignore[return-value]


STAND_INS: dict[str, Callable[[Path], None]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": causal,
    "google-bert/bert-base-uncased": bert,
    "llava-hf/llava-1.5-7b-hf": lambda place: vision_model("llava").save_pretrained(place),
    "openai-community/gpt2": copied("models/gpt2"),
    "my-pyreft-folder": copied("pr_loreft_gpt2_f1/checkpoint"),
    "my-adapters-folder": copied("ad_noreft_gpt2_relu/checkpoint"),
}
"""Name in a page → what makes a folder of that name, which is then found before the Hub's."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(blocks(page))
    assert code
    if "BitsAndBytesConfig" in code:
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, make in STAND_INS.items():
            if f'"{name}"' in code:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                make(Path(name))
        exec(compile(code, page.name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_the_four_parts(page: Path) -> None:
    text = page.read_text("utf-8")
    places = [text.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)
    assert len(text.splitlines()) < 100


def test_the_first_page_lists_them_all() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (FOLDER / "README.md").read_text("utf-8"))
    assert sorted(listed) == [page.name for page in PAGES]
