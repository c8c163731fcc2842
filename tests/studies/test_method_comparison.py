"""The folders for PEFT's MetaMathQA board: what its script does with them, done on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.method_comparison.experiments import EXPERIMENTS, FOLDER, write
from peft_reft import ReftConfig

MOST = 300_000
BOARD = LlamaConfig(
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
)
"""Llama-3.2-3B's shape."""
TRAINING = {"model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps", "eval_steps"} | {
    "compile", "use_gc", "query_template", "seed", "grad_norm_clip", "optimizer_type", "optimizer_kwargs",
    "lr_scheduler", "use_amp", "autocast_adapter_dtype", "generation_kwargs", "attn_implementation",
    "init_kv_cache_prefix",
}  # fmt: skip
"""Fields of the board's `TrainConfig`."""


def test_the_folders_are_those_of_the_table(tmp_path: Path) -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXPERIMENTS)
    for made in write(tmp_path):
        for file in ("adapter_config.json", "training_params.json"):
            stored, fresh = (json.loads((root / made.name / file).read_text()) for root in (FOLDER, tmp_path))
            assert {**stored, "peft_version": 0} == {**fresh, "peft_version": 0}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_the_board_and_the_size_it_is_compared_at(name: str) -> None:
    config = PeftConfig.from_pretrained(str(FOLDER / name))
    assert isinstance(config, ReftConfig)
    assert set(json.loads((FOLDER / name / "training_params.json").read_text())) <= TRAINING
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(BOARD), config, low_cpu_mem_usage=True)
    assert 100_000 < model.get_nb_trainable_parameters()[0] <= MOST


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_learns_from_labels_over_all_tokens_answers_left_padded_rows_and_is_saved(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tiny = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=28, num_attention_heads=4
    )
    config = PeftConfig.from_pretrained(str(FOLDER / name))
    model = get_peft_model(LlamaForCausalLM(tiny).bfloat16(), config, autocast_adapter_dtype=True)
    options = json.loads((FOLDER / name / "training_params.json").read_text())["optimizer_kwargs"]
    optimiser = torch.optim.AdamW(model.parameters(), **options)
    ids, lengths = torch.randint(3, 60, (4, 12)), torch.tensor([12, 9, 9, 7])
    mask = (torch.arange(12) < lengths[:, None]).long()
    labels = ids.masked_fill(torch.arange(12) > lengths[:, None], -100)  # the first padding token counts, as there
    losses = []
    model.train()
    for _ in range(6):
        optimiser.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=mask.sum().item()).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.eval()
    with torch.inference_mode():
        given = GenerationConfig(max_length=16, pad_token_id=0)
        told = model.generate(input_ids=ids[:, :12], attention_mask=mask.flip(1), generation_config=given)
        article = model(input_ids=ids, attention_mask=mask).logits
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=ids, attention_mask=mask).logits, article)
    assert told.shape == (4, 16)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 0
