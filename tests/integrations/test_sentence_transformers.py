"""sentence-transformers, the real package, offline: a ReFT goes where a LoRA goes, and the page's program runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset

from peft_reft import ReftConfig

from .tiny_sft import tokenizer

pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed: pip install 'peft-reft[embeddings]'"
)

from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"
TEXTS = ["what has the colour red ?", "leaf", "tell me the colour of the sky ?"]
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS = {
    "bert": (
        lambda: hf.BertModel(
            hf.BertConfig(
                **_SIZES,
                vocab_size=64,
                initializer_range=0.3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        ),
        "mean",
    ),
    "llama": (
        lambda: hf.LlamaModel(hf.LlamaConfig(**_SIZES, vocab_size=64, initializer_range=0.3, pad_token_id=0)),
        "lasttoken",
    ),
}
"""An encoder, and a decoder as embedding models of today are; with how they pool."""


def saved_model(folder: Path, name: str) -> Path:
    make, pooling = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    layers = [Transformer(str(folder / "base")), Pooling(_SIZES["hidden_size"], pooling)]
    SentenceTransformer(modules=layers, device="cpu").save(str(folder / "model"))
    return folder / "model"


def adapted(folder: Path) -> Any:
    model = SentenceTransformer(str(folder), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter(
            ReftConfig(task_type="FEATURE_EXTRACTION", r=2, positions="f1+l1", share_weights=False, init_weights=False)
        )
    return model


def train(model: Any, folder: Path, *, resume: Path | None = None) -> None:
    rows = {"anchor": ["what red ?", "the sky", "snow", "leaf"], "positive": ["red apple", "blue", "white", "green"]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        seed=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        loss=MultipleNegativesRankingLoss(model),
    ).train(resume_from_checkpoint=None if resume is None else str(resume))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_whole_path(tmp_path: Path, name: str) -> None:
    """Encode, train, resume, save, reload, switch off: each bit as it should be."""
    folder = saved_model(tmp_path, name)
    plain = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    model = adapted(folder)
    start = model.encode(TEXTS)
    assert np.abs(start - plain).max() > 0.1
    names = [parameter for parameter, value in model.named_parameters() if value.requires_grad]
    assert names
    assert all(".reft." in parameter for parameter in names)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    train(model, tmp_path / "run")
    trained = model.encode(TEXTS)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= set(names)
    assert len(changed) > len(names) // 2  # the last block's first token does not reach a pooled last one
    assert np.abs(trained - start).max() > 1e-3

    resumed = adapted(folder)
    train(resumed, tmp_path / "again", resume=tmp_path / "run" / "checkpoint-2")
    assert np.array_equal(resumed.encode(TEXTS), trained)

    model.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size < 10_000
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert np.array_equal(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), trained)
    loaded = SentenceTransformer(str(folder), device="cpu")
    loaded.load_adapter(str(tmp_path / "saved"))
    assert np.array_equal(loaded.encode(TEXTS), trained)

    model.disable_adapters()
    assert np.array_equal(model.encode(TEXTS), plain)
    model.enable_adapters()
    assert np.array_equal(model.encode(TEXTS), trained)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_first_and_the_last_token_are_edited(tmp_path: Path, name: str) -> None:
    """By plain hooks on a bare model, one text at a time; the batch is padded."""
    folder = saved_model(tmp_path, name)
    model = adapted(folder)
    tensors = model.get_adapter_state_dict()
    bare = SentenceTransformer(str(folder), device="cpu")
    inner = bare[0].auto_model
    blocks = inner.encoder.layer if name == "bert" else inner.layers
    for number, block in enumerate(blocks):
        block.register_forward_hook(_edit(tensors, number))
    for text, found in zip(TEXTS, model.encode(TEXTS), strict=True):
        np.testing.assert_allclose(found, bare.encode([text])[0], rtol=0, atol=1e-5)


def _edit(tensors: dict[str, torch.Tensor], number: int) -> Any:
    def of(unit: int, part: str) -> torch.Tensor:
        (value,) = (v for k, v in tensors.items() if f".{number}.reft.reft_{unit}." in k and k.endswith(part))
        return value

    def hook(_: Any, __: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        places = [0, hidden.shape[1] - 1] if hidden.shape[1] > 1 else [0]  # one token belongs to the first term
        for unit, place in enumerate(places):
            rows, factor = torch.linalg.qr(of(unit, "rotation").mT)
            rotation = (rows * factor.diagonal().sign()).mT
            h = hidden[0, place]
            hidden[0, place] = h + rotation.mT @ (of(unit, "weight") @ h + of(unit, "bias") - rotation @ h)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def test_the_program_of_the_page(tmp_path: Path) -> None:
    """With a tiny encoder in the place of the one that it names."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert name in program
    script = tmp_path / "page.py"
    script.write_text(program.replace(name, str(saved_model(tmp_path, "bert"))), "utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "my-embeddings" / "adapter_model.safetensors").is_file()
