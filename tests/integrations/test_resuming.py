"""A checkpoint of several adapters, resumed by a trainer that loads those in folders alone (transformers 5.19)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from .tiny_sft import base_model, reft


class Older(Trainer):
    """`_load_from_checkpoint` as it was: the adapter `default`, at the root, is not among what it loads."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        active_adapter = model.active_adapters[0]
        model.load_adapter(
            str(Path(resume_from_checkpoint) / "other"), "other", is_trainable=active_adapter == "other"
        )
        model.set_adapter(active_adapter)


def two_adapters(seed: int, active: str) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(base_model(), reft(init_weights=False))
        model.add_adapter("other", reft(init_weights=False, positions="l1"))
    model.set_adapter(active)
    return model


def edits(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if ".reft_" in name}


@pytest.mark.parametrize("active", ["default", "other"])
def test_the_adapter_at_the_root_comes_back_too(active: str, tmp_path: Path) -> None:
    saved = two_adapters(1, active)
    saved.save_pretrained(tmp_path / "checkpoint")
    model = two_adapters(2, active)
    before = edits(model)
    trainer = Older(model=model, args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    after, wanted = edits(model), edits(saved)
    assert {name.partition(".reft_0.")[2].partition(".")[0] for name in wanted} == {"default", "other"}
    for name, value in wanted.items():
        assert torch.equal(after[name], value)
        assert not torch.equal(before[name], value)
    assert model.active_adapters == [active]
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning
    assert all(f".{active}." in name for name in learning)
    model.set_adapter("default")  # nobody resumes: nothing is loaded
    assert all(torch.equal(value, wanted[name]) for name, value in edits(model).items())
