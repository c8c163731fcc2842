"""TRL's experimental `ORPOTrainer` and `CPOTrainer`, stock: one forward of chosen and rejected answers, no labels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from .preferences import POLICIES, ROUTINE, edits_of_passes, ends_of_prompts, preferences, sequences
from .tiny_sft import base_model, first_batch, reft, tokenizer, trainable

KINDS = {"orpo": "ORPO", "cpo": "CPO"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(f"trl.experimental.{request.param}", reason=f"this TRL has no {KINDS[request.param]}Trainer")
    return str(request.param)


def trainer_of(kind: str, folder: Path, model: nn.Module, *, given: Any = None, **fields: Any) -> Any:
    """Two steps of one batch of all four pairs."""
    module, name = importlib.import_module(f"trl.experimental.{kind}"), KINDS[kind]
    args = getattr(module, f"{name}Config")(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 64,
            "gradient_checkpointing": False,
            **ROUTINE,
            **fields,
        }
    )
    made = getattr(module, f"{name}Trainer")
    data = preferences()
    return made(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer(), **(given or {})
    )


def rows_of(batch: dict[str, Any]) -> dict[str, Tensor]:
    """All chosen, then all rejected, padded on the right to one length."""
    found = {}
    for name in ("input_ids", "attention_mask"):
        rows = [row for part in ("chosen", "rejected") for row in batch[f"{part}_{name}"]]
        found[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return found


@pytest.mark.parametrize("positions", ["f1+l2", "l3"])
@pytest.mark.parametrize("policy", ["new", *POLICIES])
def test_the_ends_of_every_prompt_are_edited_before_both_answers(
    tmp_path: Path, kind: str, policy: str, positions: str
) -> None:
    fields = {"positions": positions, "layers_to_transform": [0]}
    if policy == "new":
        trainer = trainer_of(kind, tmp_path, base_model(), given={"peft_config": reft(**fields)})
    else:
        trainer = trainer_of(kind, tmp_path, POLICIES[policy](**fields))
    asked = {"first": int(positions == "f1+l2"), "last": int(positions[-1])}
    batch = first_batch(trainer)
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    assert passes == [ends_of_prompts(rows_of(batch), **asked)]
    batch = next(iter(trainer.get_eval_dataloader()))
    with edits_of_passes(trainer.model) as passes:
        trainer.evaluate()
    assert passes == [ends_of_prompts(rows_of(batch), **asked)]


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, kind: str, policy: str) -> None:
    model = POLICIES[policy](layers_to_transform=[0, 1])
    trainer = trainer_of(kind, tmp_path, model)
    loss = trainer.compute_loss(model.train(), first_batch(trainer))
    loss.backward()
    found = _taken_gradients(model)
    expected = {"orpo": _orpo_loss, "cpo": _cpo_loss}[kind](trainer.args.beta, *_log_likelihoods(model))
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys()
    assert any(".lora_" in name for name in found) is (policy != "reft")
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def _log_likelihoods(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """log p of every token of prompt and answer, and of the answer's alone: one unpadded row after another."""
    whole, answers = [], []
    for ids, length in sequences():
        where = torch.tensor([[[0, 1, length - 2, length - 1]]])
        logits = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0, :-1]
        taken = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        whole.append(taken)
        answers.append(taken[length - 1 :])
    return whole, answers


def _orpo_loss(beta: float, whole: list[Tensor], answers: list[Tensor]) -> Tensor:
    """Hong et al. 2024, eq. 6; TRL has the likelihood of prompt and chosen answer in it."""
    mean = torch.stack([row.mean() for row in answers])
    odds = mean - torch.log1p(-mean.exp())
    return -torch.cat(whole[:4]).mean() - beta * nn.functional.logsigmoid(odds[:4] - odds[4:]).mean()


def _cpo_loss(beta: float, whole: list[Tensor], answers: list[Tensor]) -> Tensor:
    """Xu et al. 2024, eq. 5: preference, and the likelihood of the chosen answer."""
    total = torch.stack([row.sum() for row in answers])
    return -nn.functional.logsigmoid(beta * (total[:4] - total[4:])).mean() - torch.cat(answers[:4]).mean()


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_a_short_run_trains_every_part(tmp_path: Path, kind: str, policy: str) -> None:
    model = POLICIES[policy]()
    before = trainable(model)
    trainer_of(kind, tmp_path, model).train()
    assert all(not torch.equal(before[name], after) for name, after in trainable(model).items())
