"""Preference training of a LoRA with an edit: the reference holds both, stays as it was, and is not saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close
from trl import DPOConfig, DPOTrainer

from contract.recording import differing, inputs_of
from contract.tiny import token_ids
from peft_reft import MixedReftModel, scale_adapter
from peft_reft.hub_format.errors import ConfigError

from .tiny import base_model, lora, mixed_model, reft, tokenizer

IDS = token_ids(3, 7)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def policy(**more: Any) -> MixedReftModel:
    """A policy whose parts are far from the identity, without dropout, which would tell a copy apart."""
    parts = {"default": lora(init_lora_weights=False, lora_dropout=0.0), "edit": reft(init_weights=False, dropout=0.0)}
    return mixed_model(**{**parts, **more})


def with_reference(model: MixedReftModel) -> MixedReftModel:
    """As TRL's trainers make it."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, value in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(value.data)
    return model


def preferences() -> Dataset:
    rows = token_ids(8, 12).tolist()
    return Dataset.from_list(
        [
            {
                "prompt": " ".join(f"w{i}" for i in row[: 3 + n % 4]),
                "chosen": " " + " ".join(f"w{i}" for i in row[7 : 9 + n % 2]),
                "rejected": " " + " ".join(f"w{i}" for i in row[9 : 11 + n % 2]),
            }
            for n, row in enumerate(rows)
        ]
    )


def trainer_of(folder: Path, model: MixedReftModel, **fields: Any) -> DPOTrainer:
    args = DPOConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            **fields,
        }
    )
    return DPOTrainer(model=model, args=args, train_dataset=preferences(), processing_class=tokenizer())


def margins(trainer: DPOTrainer) -> list[float]:
    trainer.train()
    return [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]


def test_the_reference_gives_the_bits_of_the_policy() -> None:
    model = policy()
    expected = logits(model)
    with_reference(model)
    assert torch.equal(logits(model), expected)
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_the_factor_of_an_edit_goes_with_the_reference() -> None:
    model = policy()
    scale_adapter(model, "edit", 0.25)
    expected = logits(model)
    with_reference(model).set_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_the_reference_stays_while_the_policy_is_trained() -> None:
    model = with_reference(policy())
    before = logits(model)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.3)
    after = logits(model)
    assert not torch.equal(after, before)
    previous = model.active_adapter
    model.set_adapter("ref")
    assert torch.equal(logits(model), before)
    model.set_adapter(previous)
    assert torch.equal(logits(model), after)


def test_what_was_trained_is_trained_again() -> None:
    model = policy()
    for name, value in model.named_parameters():
        if ".edit." in name:
            value.requires_grad_(False)
    before = {name for name, value in model.named_parameters() if value.requires_grad}
    assert before
    active = model.active_adapters
    with_reference(model)
    assert model.active_adapters == active
    model.set_adapter("default")
    model = policy()
    with_reference(model)
    for name, value in model.named_parameters():
        if ".edit." in name:
            value.requires_grad_(False)
    model.set_adapter("ref")
    model.set_adapter(model.active_adapter)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == before
    assert model.active_adapters == active


def test_another_set_of_adapters_ends_the_way_back() -> None:
    model = with_reference(policy())
    model.set_adapter("ref")
    model.set_adapter(["edit"])
    model.set_adapter("default")
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("fields", [{}, {"padding_free": True}, {"precompute_ref_log_probs": True}], ids=str)
def test_the_margin_of_a_trained_policy_starts_at_zero_and_moves(tmp_path: Path, fields: dict[str, Any]) -> None:
    found = margins(trainer_of(tmp_path, policy(), **fields))
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert abs(found[-1]) > 1e-3


def test_both_parts_of_a_policy_learn_and_the_reference_does_not(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, policy())
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(".default." in name for name in moved)
    assert any(".edit." in name for name in moved)
    assert all(".default." in name or ".edit." in name for name in moved)


def test_policy_and_reference_edit_the_same_tokens(tmp_path: Path) -> None:
    model = policy(edit=reft(init_weights=False, dropout=0.0, layers_to_transform=[0], positions="f1+l2"))
    trainer = trainer_of(tmp_path, model)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    reader = model.get_base_model().get_submodule("model.layers.1")
    model.eval()
    seen = {}
    for name, adapters in (("policy", ["default", "edit"]), ("reference", "ref"), ("lora", ["default"])):
        model.set_adapter(adapters)
        with inputs_of(reader) as taken:
            model(**given)
        seen[name] = taken[0]
    edited = differing(seen["policy"], seen["lora"])
    assert edited == differing(seen["reference"], seen["lora"])
    expected = set()
    for row, (mask, answer) in enumerate(zip(batch["attention_mask"], batch["completion_mask"], strict=True)):
        prompt = (mask.bool() & ~answer.bool()).nonzero().flatten().tolist()
        expected |= {(row, column) for column in [prompt[0], *prompt[-2:]]}
    assert edited == expected


def test_a_checkpoint_holds_the_policy_alone_and_is_resumed(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", policy(), save_strategy="steps", save_steps=2, max_steps=4)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert not (checkpoint / "ref").exists()
    assert sorted(path.name for path in (checkpoint / "reft").iterdir()) == ["edit"]
    resumed = trainer_of(tmp_path / "again", policy(), save_strategy="steps", save_steps=2, max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected = dict(whole.model.named_parameters())
    for name, value in resumed.model.named_parameters():
        assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    loaded = MixedReftModel.from_pretrained(base_model("llama"), str(tmp_path / "whole" / "checkpoint-4"))
    assert sorted(loaded.active_adapters) == ["default", "edit"]


def test_a_reference_goes_as_a_whole() -> None:
    model = with_reference(policy())
    before = logits(model)
    model.delete_adapter("ref")
    assert sorted(model.peft_config) == ["default", "edit"]
    assert torch.equal(logits(model), before)
    with_reference(model).set_adapter("ref")
    assert torch.equal(logits(model), before)


def test_a_reference_of_two_loras_is_refused() -> None:
    model = policy(second=lora(init_lora_weights=False))
    with pytest.raises(ConfigError, match="one weight adapter"):
        with_reference(model)
    model.set_adapter(["default", "edit"])
    with_reference(model)


def test_an_adapter_of_its_own_config_is_no_reference() -> None:
    model = policy()
    model.add_adapter("ref", lora())
    assert sorted(model.peft_config) == ["default", "edit", "ref"]
    assert isinstance(model, PeftModel)
