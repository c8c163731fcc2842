"""`add_anchor`: a stock trainer's loss with the divergence from the model before the skill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from integrations.tiny_sft import PAIRS, losses, sft_config, tokenizer
from integrations.tiny_sft import base_model as model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl import SFTTrainer

from peft_reft import ReftConfig
from peft_reft.continual import add_anchor
from peft_reft.continual.anchor import kl_to_before
from peft_reft.continual.former import as_before, snapshot
from peft_reft.hub_format.errors import ConfigError

REFT: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "positions": "f1+l1"}


def trainer_of(folder: Path, adapted: Any = None, steps: int = 8, **settings: Any) -> SFTTrainer:
    args = sft_config(folder, max_steps=steps, learning_rate=3e-2, **settings)
    held = adapted if adapted is not None else get_peft_model(model(), ReftConfig(**REFT))
    return SFTTrainer(model=held, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer())


def batch() -> dict[str, Tensor]:
    ids = torch.randint(6, 30, (3, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@torch.no_grad()
def logits(adapted: PeftModel) -> Tensor:
    return adapted(**batch()).logits


def test_the_divergence_is_that_of_the_formula_over_real_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    now, before = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    real = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    expected = 0.0
    for row, column in real.nonzero().tolist():
        p, q = before[row, column].softmax(-1), now[row, column].softmax(-1)
        expected += float((p * (p / q).log()).sum()) / int(real.sum())
    assert kl_to_before(now, before, real).item() == pytest.approx(expected, rel=1e-5)
    assert kl_to_before(now, before, torch.zeros_like(real)).item() == 0


def test_a_former_state_is_there_for_a_forward_and_the_present_one_afterwards() -> None:
    adapted = get_peft_model(model(), ReftConfig(**REFT)).eval()
    former, at_first = snapshot(adapted), logits(adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    later = logits(adapted)
    loss = adapted(**batch()).loss
    with as_before(adapted, former):
        assert torch.equal(logits(adapted), at_first)
    loss.backward()  # what was computed before is not disturbed
    assert torch.equal(logits(adapted), later)
    grads = [p.grad.clone() for p in adapted.parameters() if p.grad is not None]
    adapted.zero_grad()
    adapted(**batch()).loss.backward()
    again = [p.grad for p in adapted.parameters() if p.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))
    with pytest.raises(RuntimeError), as_before(adapted, former):
        raise RuntimeError
    assert torch.equal(logits(adapted), later)


@pytest.mark.parametrize("config", [ReftConfig(**REFT), LoraConfig(task_type="CAUSAL_LM", r=4)])
def test_a_strong_anchor_keeps_the_model_nearer_to_what_it_was(config: Any, tmp_path: Path) -> None:
    moved = []
    for weight in (None, 50.0):
        adapted = get_peft_model(model(), config)
        at_first = logits(adapted)
        trainer = trainer_of(tmp_path, adapted)
        if weight is not None:
            add_anchor(trainer, weight=weight)
        trainer.train()
        moved.append((logits(adapted.eval()) - at_first).abs().mean().item())
    assert moved[1] < 0.5 * moved[0]


def test_the_first_step_is_the_plain_one_for_the_state_before_and_not_for_the_base(tmp_path: Path) -> None:
    found = {}
    for to in (None, "before", "base"):
        adapted = get_peft_model(model(), ReftConfig(**REFT, init_weights=False))
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        trainer = trainer_of(tmp_path, adapted, steps=1)
        if to is not None:
            add_anchor(trainer, weight=1.0, to=to)  # type: ignore[arg-type]
        found[to] = losses(trainer)[0]
    assert found["before"] == pytest.approx(found[None], abs=1e-4)
    assert found["base"] > found[None] + 1e-2


def test_accumulated_batches_count_as_one_large_batch(tmp_path: Path) -> None:
    found = []
    for size, steps in ((4, 1), (2, 2)):
        adapted = get_peft_model(model(), ReftConfig(**REFT))
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        told = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = trainer_of(tmp_path, adapted, steps=1, **told)
        add_anchor(trainer, weight=1.0, to="base")
        found.append(losses(trainer)[0])
    assert found[0] == pytest.approx(found[1], rel=0.1)  # means of halves whose lengths differ a little


def test_evaluation_reports_the_plain_loss(tmp_path: Path) -> None:
    adapted = get_peft_model(model(), ReftConfig(**REFT, init_weights=False))
    trainer = trainer_of(tmp_path, adapted)
    data = trainer.train_dataset
    plain = trainer.evaluate(data)["eval_loss"]
    add_anchor(trainer, weight=100.0, to="base")
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(plain)


def test_a_plain_trainer_takes_it_too(tmp_path: Path) -> None:
    adapted = get_peft_model(model(), ReftConfig(**REFT))
    rows = [{name: value[row] for name, value in batch().items()} for row in range(3)]
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    trainer = Trainer(model=adapted, args=args, train_dataset=rows)
    add_anchor(trainer, weight=1.0)
    trainer.train()
    assert trainer.state.global_step == 2


def test_what_is_not_allowed_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    for changed, told in (
        ({"anchor": "l2"}, "anchor"),
        ({"to": "mars"}, "to="),
        ({"weight": 0}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"weight": True}, "weight"),
    ):
        with pytest.raises(ConfigError, match=told):
            add_anchor(trainer, **changed)  # type: ignore[arg-type]
    add_anchor(trainer)
    with pytest.raises(ConfigError, match="already"):
        add_anchor(trainer)
    plain = SFTTrainer.__new__(SFTTrainer)
    plain.model = model()
    with pytest.raises(ConfigError, match="peft_config"):
        add_anchor(plain)
    frozen = trainer_of(tmp_path)
    frozen.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing"):
        add_anchor(frozen)


def test_a_state_that_is_gone_is_refused(tmp_path: Path) -> None:
    adapted = get_peft_model(model(), ReftConfig(**REFT))
    former = snapshot(adapted)
    adapted.add_adapter("other", ReftConfig(**REFT))
    adapted.delete_adapter("default")
    with pytest.raises(ConfigError, match="not what it was"), as_before(adapted, former):
        pass
