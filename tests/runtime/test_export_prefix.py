"""Edits of a fixed prefix, exported: the same logits and tokens from stock PEFT in a process without peft_reft."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, export_prefix, scale_adapter
from peft_reft.generation.export_prefix import ExportedPrefix
from peft_reft.hub_format.errors import ConfigError, PositionError

WIDTH, REST, STEPS = 9, 6, 40
EXACT = ("llama", "qwen3", "gpt2", "gpt_neox", "opt", "phi")
FIELDS: dict[str, dict[str, Any]] = {
    "loreft": {"positions": "f3+p[4:7]", "share_weights": False},
    "across tokens": {"intervention": "reft_r1", "positions": "f5"},
    "a head": {"component": "head_output[1]", "positions": "f9", "intervention": "bias"},
    "all heads": {"component": "heads", "positions": "f4-p[1:2]", "intervention": "bias"},
    "two groups": {"positions": "f2", "interventions": [{"intervention": "red"}, {"component": "mlp_output"}]},
}

LOAD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft_reft":
            raise ImportError("peft_reft is blocked here")

sys.meta_path.insert(0, Blocked())
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

root, names = sys.argv[1], sys.argv[2:]
rest = torch.load(f"{root}/rest.pt")
for name in names:
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{name}/base")
    model = PeftModel.from_pretrained(base, f"{root}/{name}/prefix").eval()
    given = {"input_ids": rest, "attention_mask": torch.ones_like(rest)}
    with torch.no_grad():
        logits = model(**given).logits
    tokens = model.generate(**given, max_new_tokens=40, do_sample=False, pad_token_id=0)
    torch.save((logits, tokens), f"{root}/{name}/found.pt")
"""


def whole(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    head = token_ids(1, WIDTH, seed=4)
    return head, token_ids(batch, REST, seed=5)


def expected(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    head, rest = whole()
    prompt = torch.cat([head.expand(len(rest), -1), rest], 1)
    given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    tokens = model.generate(**given, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        return model(**given).logits[:, WIDTH:], tokens[:, WIDTH:]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process for all architectures."""
    root = tmp_path_factory.mktemp("prefixes")
    torch.save(whole()[1], root / "rest.pt")
    for name in EXACT:
        model = reft_model(name, positions="f3+p[4:7]", share_weights=False)
        (root / name).mkdir()
        export_prefix(model, whole()[0]).save_pretrained(root / name / "prefix")
        base_model(name).save_pretrained(root / name / "base")
    subprocess.run([sys.executable, "-c", LOAD, str(root), *EXACT], check=True, timeout=300)
    return root


@pytest.mark.parametrize("name", EXACT)
def test_a_process_without_peft_reft_gives_the_same_logits_and_tokens(name: str, loaded: Path) -> None:
    logits, tokens = torch.load(loaded / name / "found.pt")
    wanted = expected(reft_model(name, positions="f3+p[4:7]", share_weights=False))
    assert_close(logits, wanted[0], rtol=1e-4, atol=5e-5)
    assert torch.equal(tokens, wanted[1])
    config = json.loads((loaded / name / "prefix" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("CARTRIDGE", WIDTH)
    base = base_model(name)
    assert not torch.allclose(base(torch.cat([whole()[0].expand(2, -1), whole()[1]], 1)).logits[:, WIDTH:], wanted[0])


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_the_cache_of_a_prefix_is_that_of_the_edits(fields: dict[str, Any]) -> None:
    model = reft_model("llama", **fields)
    head, rest = whole(1)
    wanted = model(torch.cat([head, rest], 1)).logits[:, WIDTH:]
    prefix = export_prefix(model, head[0])
    for _ in range(2):  # made anew each time
        found = base_model("llama")(rest, past_key_values=prefix.past_key_values).logits
        assert_close(found, wanted, rtol=1e-4, atol=5e-5)
    assert_close(model(torch.cat([head, rest], 1)).logits[:, WIDTH:], wanted)  # the model is as it was


def test_factors_and_several_adapters_go_in() -> None:
    model = reft_model("llama", positions="f3")
    model.add_adapter(
        "more", ReftConfig(task_type="CAUSAL_LM", positions="f5", intervention="bias", init_weights=False)
    )
    model.base_model.set_adapter(["default", "more"])
    scale_adapter(model, "more", 0.5)
    head, rest = whole(1)
    wanted = model.eval()(torch.cat([head, rest], 1)).logits[:, WIDTH:]
    found = base_model("llama")(rest, past_key_values=export_prefix(model, head).past_key_values).logits
    assert_close(found, wanted, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"positions": "f3+l2"}, "l2"),
        ({"positions": "f10"}, "f10"),
        ({"positions": "p[1:-1]"}, r"p\[1:-1\]"),
        ({"positions": "p[2:]"}, r"p\[2:\]"),
        ({"positions": "all"}, "all"),
        ({"positions": "generated+f1"}, "generated"),
        ({"positions": "f3-l2"}, "-l2"),
        ({"positions": "f3", "turns": "each"}, "turns='each'"),
    ],
)
def test_edits_beyond_the_prefix_are_refused_by_name(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(PositionError, match=f"edits {text}"):
        export_prefix(reft_model("llama", **fields), whole()[0])


@pytest.mark.parametrize(
    ("name", "text"),
    [("mistral", "SlidingWindow"), ("gemma2", "SlidingWindow"), ("mamba", "Mamba"), ("t5", "encoder-decoder")],
)
def test_other_caches_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        export_prefix(reft_model(name, positions="f3"), whole()[0])


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
OTHERS = {
    "XLNetLMHeadModel returned a tuple": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=64, mem_len=20)
    ),
    "RobertaForCausalLM: its forward counts positions otherwise than generate": lambda: hf.RobertaForCausalLM(
        hf.RobertaConfig(is_decoder=True, intermediate_size=48, max_position_embeddings=64, **SMALL)
    ),
}


@pytest.mark.parametrize("text", OTHERS)
def test_a_base_whose_cache_takes_no_note_or_whose_positions_are_two_is_refused_by_name(text: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = OTHERS[text]().eval()
        for parameter in base.parameters():
            parameter.data.normal_(std=0.3)
        model = get_peft_model(base, ReftConfig(positions="f3", init_weights=False)).eval()
    with pytest.raises(ConfigError, match=text):
        export_prefix(model, whole()[0])


def test_what_acts_beside_the_edits_is_refused() -> None:
    configs = {
        "default": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False),
        "edit": ReftConfig(task_type="CAUSAL_LM", positions="f3", init_weights=False),
    }
    mixed = MixedReftModel.from_configs(base_model("llama"), configs).eval()
    with pytest.raises(ConfigError, match="weight adapter 'default'"):
        export_prefix(mixed, whole()[0])
    saved = reft_model("llama", positions="f3", modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match="trained in full"):
        export_prefix(saved, whole()[0])
    with pytest.raises(ConfigError, match="training mode"):
        export_prefix(reft_model("llama", positions="f3").train(), whole()[0])
    with pytest.raises(ConfigError, match=r"\[1, seq\]"):
        export_prefix(reft_model("llama", positions="f3"), token_ids(2, WIDTH))
    with pytest.raises(ConfigError, match="no ReFT adapter"):
        export_prefix(base_model("llama"), whole()[0])


def test_a_model_that_would_not_be_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that sees more of earlier tokens than their keys and values."""
    monkeypatch.setattr(ExportedPrefix, "_layers", _zeros(ExportedPrefix._layers))
    with pytest.raises(ConfigError, match="off by"):
        export_prefix(reft_model("llama", positions="f3"), whole()[0])


def _zeros(own: Any) -> Any:
    return lambda self: tuple(torch.zeros_like(part) for part in own(self))


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    prefix = export_prefix(reft_model("llama", positions="f3"), whole()[0])
    folder = prefix.save_pretrained(tmp_path / "prefix")
    assert str(list(prefix.token_ids)) in (folder / "README.md").read_text()
    with pytest.raises(ConfigError, match="holds an adapter"):
        prefix.save_pretrained(folder)
