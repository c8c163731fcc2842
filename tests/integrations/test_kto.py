"""Stock `KTOTrainer`: policy, reference and the mismatched pairs of its KL term edit the ends of their prompts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.testing import assert_close
from trl import KTOConfig, KTOTrainer

from .preferences import POLICIES, REJECTED, ROUTINE, edits_of_passes, ends_of_prompts, history, sequences
from .tiny_sft import PAIRS, base_model, first_batch, reft, tokenizer


def kto_trainer(folder: Path, model: nn.Module, *, given: Any = None, **fields: Any) -> KTOTrainer:
    """Three steps of one batch: four answers that are wanted and four that are not."""
    args = KTOConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            **ROUTINE,
            **fields,
        }
    )
    named = {"train_dataset": kto_data(), "processing_class": tokenizer(), **(given or {})}
    return KTOTrainer(model=model, args=args, **named)


def kto_data() -> Dataset:
    """The answers of `PAIRS`, and as many wrong ones."""
    good = [{**row, "label": True} for row in PAIRS]
    bad = [{**row, "completion": wrong, "label": False} for row, wrong in zip(PAIRS, REJECTED, strict=True)]
    return Dataset.from_list([*good, *bad])


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_margin_of_a_trained_policy_starts_at_zero_and_grows(
    tmp_path: Path, policy: str, precomputed: bool
) -> None:
    trainer = kto_trainer(tmp_path, POLICIES[policy](), precompute_ref_log_probs=precomputed)
    trainer.train()
    margins = history(trainer, "rewards/margins")
    assert abs(margins[0]) < 1e-6
    assert margins[0] < margins[1] < margins[2]
    assert history(trainer, "loss")[0] == pytest.approx(0.5, abs=1e-5)
    assert history(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert policy == "reft" or history(trainer, "kl")[2] > 1e-3  # of the small edit it is negative, and set to 0


@pytest.mark.parametrize("policy", ["new", *POLICIES])
def test_every_pass_edits_the_ends_of_every_prompt(tmp_path: Path, policy: str) -> None:
    fields = {"positions": "f1+l2", "layers_to_transform": [0]}
    if policy == "new":
        trainer = kto_trainer(tmp_path, base_model(), given={"peft_config": reft(**fields)})
    else:
        trainer = kto_trainer(tmp_path, POLICIES[policy](**fields))
    batch = first_batch(trainer)
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), dict(batch))
    expected = ends_of_prompts(batch, first=1, last=2)
    mismatched = {(row, column) for row, prompt in _kl_prompts(batch) for column in [prompt[0], *prompt[-2:]]}
    by_reference = [set(), set()] if policy == "new" else [expected, mismatched]
    assert sorted(map(sorted, passes)) == sorted(map(sorted, [expected, mismatched, *by_reference]))


def _kl_prompts(batch: dict[str, Any]) -> list[tuple[int, range]]:
    """(row, prompt) of the mismatched pairs: a row's prompt is its longest head that is a prompt of the data."""
    prompts = {tuple(ids[:length]) for ids, length in sequences()}
    rows = batch["KL_input_ids"].tolist()
    return [
        (row, range(max(length for length in range(len(line)) if tuple(line[:length]) in prompts)))
        for row, line in enumerate(rows)
    ]


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, policy: str, loss_type: str) -> None:
    """After two steps, against a copy of the policy as it was before them; arXiv 2402.01306, equation 7."""
    model = POLICIES[policy](layers_to_transform=[0, 1])
    before = deepcopy(model)
    trainer = kto_trainer(tmp_path, model, max_steps=2, loss_type=loss_type)
    trainer.train()
    batch = first_batch(trainer)
    loss = trainer.compute_loss(model.train(), dict(batch))
    loss.backward()
    found = _taken_gradients(model)
    with torch.no_grad():
        reference = _log_likelihoods(before, batch)
        kl = torch.zeros(())
        if loss_type == "kto":
            kl = (_log_likelihoods(model, batch, "KL_") - _log_likelihoods(before, batch, "KL_")).mean().clamp(min=0)
            assert policy == "reft" or kl > 1e-3
    gains = _log_likelihoods(model, batch) - reference
    signs = torch.where(torch.as_tensor(batch["label"], dtype=torch.bool), 1.0, -1.0)
    expected = (1 - torch.sigmoid(trainer.args.beta * signs * (gains - kl))).mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys()
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)


def _log_likelihoods(model: nn.Module, batch: dict[str, Any], prefix: str = "") -> Tensor:
    """log p(answer | prompt) `[rows]`: one unpadded row after another, no labels, `f2+l2` given by hand."""
    found = []
    names = [f"{prefix}{name}" for name in ("input_ids", "attention_mask", "completion_mask")]
    for line, attended, answer in zip(*(batch[name].tolist() for name in names), strict=True):
        ids, length = line[: sum(attended)], sum(attended) - sum(answer)
        where = torch.tensor([[[0, 1, length - 2, length - 1]]])
        logits = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0, length - 1 : -1]
        found.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(ids[length:]), reduction="sum"))
    return torch.stack(found)


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
