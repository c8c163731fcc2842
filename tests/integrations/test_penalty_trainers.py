"""Penalties, their schedule and learning rates by tensor under stock trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from peft_reft import PenaltySchedule, ReftConfig, parameter_groups
from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions.heads import Heads

from .tiny_sft import base_model, losses, reft, trainer_for

OPTIONS = {"heads": 4, "gates": False, "sparsity": 0.5}


def heads_config(**options: Any) -> ReftConfig:
    return reft(intervention="heads", component="heads", options={**OPTIONS, **options}, positions="all")


def model_with(**options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(base_model(), heads_config(**options))


def of_parameters(model: Any) -> Tensor:
    return sum(0.5 * unit.scale.abs().sum() for unit in model.modules() if isinstance(unit, Heads))


ROWS = [
    {"input_ids": [7, 8, 9, 10, 11], "labels": [-100, -100, -100, 10, 11]},
    {"input_ids": [12, 13, 14, 15, 16], "labels": [-100, 13, 14, 15, 16]},
]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_accumulated_step_moves_by_one_penalty(accumulated: int, tmp_path: Path) -> None:
    """One step of SGD: parameters − lr · (gradient of the mean over all supervised tokens + that of one penalty)."""
    model = model_with()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    batch = {name: torch.tensor([row[name] for row in ROWS]) for name in ROWS[0]}
    (model.eval()(**batch).loss + of_parameters(model)).backward()
    expected = {name: before[name] - 0.1 * p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2 // accumulated,
        gradient_accumulation_steps=accumulated,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        max_grad_norm=0,
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Trainer(model, arguments, train_dataset=ROWS, optimizers=(optimizer, None)).train()
    for name, wanted in expected.items():
        assert_close(dict(model.named_parameters())[name].detach(), wanted, rtol=1e-4, atol=1e-5)


def test_trls_fused_head_takes_it(tmp_path: Path) -> None:
    """TRL makes its loss of log-probabilities: what it logs is the loss of evaluation and the penalty."""
    model = model_with()
    penalty = float(of_parameters(model))
    trainer = trainer_for(tmp_path, model=model, max_steps=1, learning_rate=1e-9)
    (logged,) = losses(trainer)
    given = ("input_ids", "attention_mask", "labels")
    batch = {name: held for name, held in next(iter(trainer.get_train_dataloader())).items() if name in given}
    with torch.no_grad():
        plain = float(model.eval()(**batch).loss)
    assert_close(logged, plain + penalty, rtol=1e-3, atol=1e-3)
    assert penalty > 1


def test_trl_accumulates_one_penalty(tmp_path: Path) -> None:
    """One step of SGD on rows of unequal lengths, all at once and one by one."""
    found = []
    for rows in (4, 1):
        model = model_with()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        trainer = trainer_for(
            tmp_path,
            model=model,
            max_steps=1,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=4 // rows,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            given={"optimizers": (optimizer, None)},
        )
        trainer.train()
        found.append([p.detach() for p in model.parameters() if p.requires_grad])
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    free = model_with(sparsity=0.0)
    assert not all(map(torch.equal, found[0], [p.detach() for p in free.parameters() if p.requires_grad]))


def test_a_loss_that_is_no_mean_of_log_probabilities_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, model=model_with(), max_steps=1, loss_type="dft")
    with pytest.raises(ConfigError, match="loss_type='dft'"):
        trainer.train()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1.0, 0.55, 0.1]),
        ("exponential", [1.0, 0.1**0.5, 0.1]),
        ("cyclic", [1.0, 1.0, 1.0]),
    ],
)
def test_a_schedule_sets_the_weight_of_every_step(shape: Any, expected: list[float], tmp_path: Path) -> None:
    model, seen = model_with(gates=True, penalty=7.0), []
    (unit, *_) = [module for module in model.modules() if isinstance(module, Heads)]
    own = unit.penalty
    unit.penalty = lambda: seen.append(unit.penalty_weight) or own()
    schedule = PenaltySchedule(shape, start=1.0, end=0.1, cycles=2)
    trainer_for(tmp_path, model=model, max_steps=3, given={"callbacks": [schedule]}).train()
    assert_close(seen, expected)


@pytest.mark.parametrize("given", [("square", 1.0, 0.5), ("linear", -1.0, 0.5), ("exponential", 1.0, 0.0)])
def test_a_schedule_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError):
        PenaltySchedule(given[0], start=given[1], end=given[2])


def test_a_stock_trainer_takes_learning_rates_by_tensor(tmp_path: Path) -> None:
    """Adam's first step is ± its rate, so that what a tensor moved by is the rate that it had."""
    config = reft(intervention="prosv", positions="f2+l2", init_weights="paper")
    model = get_peft_model(base_model(), config)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(model, {"factor": 0.5}, lr=0.01)
    given = {"optimizers": (torch.optim.Adam(groups), None)}
    trainer_for(tmp_path, model=model, max_steps=1, given=given, lr_scheduler_type="constant").train()
    for name, parameter in model.named_parameters():
        if name in before:
            moved = (parameter - before[name]).abs().max()
            assert_close(float(moved), 0.5 if "factor" in name else 0.01, rtol=1e-3, atol=0)


def test_the_same_groups_by_class_and_arguments(tmp_path: Path) -> None:
    model = get_peft_model(base_model(), reft(intervention="prosv", init_weights="paper"))
    given = (torch.optim.AdamW, {"params": parameter_groups(model, {"factor": 0.5}, lr=0.01, weight_decay=0.1)})
    trainer = trainer_for(tmp_path, model=model, given={"optimizer_cls_and_kwargs": given})
    found = [
        (group["lr"], group["weight_decay"], len(group["params"])) for group in trainer.create_optimizer().param_groups
    ]
    assert found == [(0.5, 0.0, 3), (0.01, 0.1, 3)]


@pytest.mark.parametrize(
    ("rates", "lr", "text"), [({"factors": 1.0}, 1.0, "direction, factor"), ({}, 0.0, "positive")]
)
def test_rates_that_are_none_are_refused(rates: dict[str, float], lr: float, text: str) -> None:
    model = get_peft_model(base_model(), reft(intervention="prosv", init_weights="paper"))
    with pytest.raises(ConfigError, match=text):
        parameter_groups(model, rates, lr=lr)
