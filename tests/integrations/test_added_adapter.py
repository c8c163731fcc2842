"""`Trainer` and `SFTTrainer` of a model that got its adapter by transformers' `model.add_adapter`, without PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from .preferences import ROUTINE, edits_of_passes
from .reading import documents_of, expected_tokens
from .tiny_sft import BRIEF, base_model, encoded, first_batch, pairs, reft, tokenizer, trainable, trainer_for


def added(**fields: Any) -> nn.Module:
    model = base_model()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.add_adapter(reft(**fields))
    return model


def rows() -> Dataset:
    """Tokens, and labels that leave the prompt out."""
    return Dataset.from_list(
        [{"input_ids": ids, "labels": [-100] * length + ids[length:]} for ids, length in encoded()]
    )


def trainer_of(folder: Path, model: nn.Module, *, side: str = "right", given: Any = None, **fields: Any) -> Trainer:
    """Three steps of one batch of four, the trainer of transformers."""
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            **BRIEF,
            **ROUTINE,
            **fields,
        }
    )
    collator = DataCollatorForSeq2Seq(tokenizer(), padding=True)
    collator.tokenizer.padding_side = side
    return Trainer(
        model=model, args=args, train_dataset=rows(), eval_dataset=rows(), data_collator=collator, **(given or {})
    )


@pytest.fixture(autouse=True)
def padding_side() -> Any:
    yield
    tokenizer().padding_side = "right"


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "own loss": {
        "given": {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()}
    },
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", WAYS)
def test_the_ends_of_every_prompt_are_edited_in_training(tmp_path: Path, way: str, side: str) -> None:
    trainer = trainer_of(tmp_path, added(positions="f1+l2", layers_to_transform=[0]), side=side, **WAYS[way])
    batch = first_batch(trainer)
    expected = expected_tokens(batch, first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), dict(batch))
    assert passes == [expected]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_the_ends_of_every_prompt_are_edited_for_metrics(tmp_path: Path, verb: str) -> None:
    given = {"compute_metrics": lambda prediction: {}}
    trainer = trainer_of(tmp_path, added(positions="f1+l2", layers_to_transform=[0]), given=given)
    expected = expected_tokens(next(iter(trainer.get_eval_dataloader())), first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        trainer.evaluate() if verb == "evaluate" else trainer.predict(rows())
    assert passes == [expected]


@pytest.mark.parametrize("trained_by", ["transformers", "trl"])
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, trained_by: str) -> None:
    model = added()
    trainer = trainer_of(tmp_path, model) if trained_by == "transformers" else sft_of(tmp_path, model)
    loss = trainer.compute_loss(model.train(), first_batch(trainer))
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    found = _taken_gradients(model)
    expected = _by_hand(model)
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys() == trainable(model).keys()
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)


def _by_hand(model: nn.Module) -> Tensor:
    """The mean over all tokens of all answers; one unpadded row after another, `f2+l2` given by hand."""
    found = []
    for ids, length in encoded():
        where = torch.tensor([[[0, 1, length - 2, length - 1]]])
        logits = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0, length - 1 : -1]
        found.append(nn.functional.cross_entropy(logits, torch.tensor(ids[length:]), reduction="none"))
    return torch.cat(found).mean()


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def sft_of(folder: Path, model: nn.Module, **fields: Any) -> Any:
    return trainer_for(folder, pairs(), model=model, **fields)


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}], ids=["padded", "padding_free"])
def test_the_trainer_of_trl_edits_the_ends_too(tmp_path: Path, layout: dict[str, Any]) -> None:
    trainer = sft_of(tmp_path, added(positions="f1+l2", layers_to_transform=[0]), **layout)
    batch = first_batch(trainer)
    expected = expected_tokens(batch, first=1, last=2)
    assert len(documents_of(batch)) == 4
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    assert passes == [expected]


def test_a_run_trains_the_edits_alone_and_its_checkpoint_loads(tmp_path: Path) -> None:
    model = added()
    others = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = trainable(model)
    trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=3)
    trainer.train()
    after = trainable(model)
    assert all(".reft" in name for name in before)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in others.items())
    loaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "checkpoint-3"))
    ids = torch.tensor([encoded()[0][0]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
