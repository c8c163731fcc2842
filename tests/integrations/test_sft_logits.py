"""Forwards without labels: `compute_metrics`, `predict`, label smoothing and custom losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import EvalPrediction
from trl import SFTTrainer

from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer

from .reading import LAYOUTS
from .tiny_sft import first_batch, losses, pairs, tokenizer, trainer_for

SMOOTHING = 0.2


def no_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"rows": float(len(prediction.predictions))}


def evaluated(folder: Path, kind: type[SFTTrainer], verb: str, **fields: Any) -> tuple[np.ndarray, Tensor]:
    """Logits that a metric sees, and those of a forward with labels over the same batch."""
    seen: list[np.ndarray] = []

    def metric(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction.predictions)
        return no_metrics(prediction)

    given = {"eval_dataset": pairs(), "compute_metrics": metric}
    trainer = trainer_for(folder, kind=kind, given=given, **fields)
    if verb == "evaluate":
        assert trainer.evaluate()["eval_rows"] > 0
    else:
        assert trainer.predict(trainer.eval_dataset).metrics["test_rows"] > 0
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    batch.pop("prompt_mask", None)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
    return seen[0], expected


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_see_the_logits_of_the_forward_with_labels(
    tmp_path: Path, layout: str, verb: str, kind: type[SFTTrainer]
) -> None:
    found, expected = evaluated(tmp_path, kind, verb, **LAYOUTS[layout])
    assert np.array_equal(found, expected.numpy())


def test_both_evaluate_to_the_same_loss(tmp_path: Path) -> None:
    given = {"eval_dataset": pairs(), "compute_metrics": no_metrics}
    kinds = [trainer_for(tmp_path, kind=kind, given=given).evaluate() for kind in (SFTTrainer, ReftSFTTrainer)]
    assert kinds[0]["eval_loss"] == kinds[1]["eval_loss"]


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Label smoothing as its paper has it: cross entropy with a mixture of the label and the uniform distribution."""
    kept = labels[:, 1:].reshape(-1)
    scores = logits[:, :-1].reshape(-1, logits.shape[-1])[kept != -100]
    return torch.nn.functional.cross_entropy(scores, kept[kept != -100], label_smoothing=SMOOTHING)


def custom(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return 2 * smoothed(outputs.logits, labels)


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["label_smoothing_factor", "compute_loss_func"])
def test_losses_of_full_logits(tmp_path: Path, layout: str, way: str, kind: type[SFTTrainer]) -> None:
    fields: dict[str, Any] = {"label_smoothing_factor": SMOOTHING} if way == "label_smoothing_factor" else {}
    given = {} if fields else {"compute_loss_func": custom}
    trainer = trainer_for(tmp_path, kind=kind, given=given, **fields, **LAYOUTS[layout])
    batch = first_batch(trainer)
    labelled = {name: value for name, value in batch.items() if name != "prompt_mask"}
    logits = trainer.model.train()(**labelled).logits
    expected = smoothed(logits, batch["labels"]) * (1 if fields else 2)
    assert_close(trainer.compute_loss(trainer.model, batch), expected)
    found = losses(trainer)
    assert_close(found[0], expected.item(), rtol=1e-5, atol=1e-6)
    assert found[-1] < found[0]


def test_it_trains_as_the_plain_trainer_does(tmp_path: Path) -> None:
    for layout in LAYOUTS.values():
        plain, ours = (trainer_for(tmp_path, kind=kind, **layout) for kind in (SFTTrainer, ReftSFTTrainer))
        assert losses(plain) == losses(ours)


def test_a_collator_of_the_user_is_wrapped_once(tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    inner = DataCollatorForLanguageModeling(pad_token_id=tokenizer().pad_token_id)
    mine = ReftDataCollator(inner)
    assert trainer_for(tmp_path, kind=ReftSFTTrainer, given={"data_collator": mine}).data_collator is mine
    wrapped = trainer_for(tmp_path, kind=ReftSFTTrainer, given={"data_collator": inner}).data_collator
    assert isinstance(wrapped, ReftDataCollator)
    assert wrapped.collator is inner
    plain = trainer_for(tmp_path, given={"data_collator": mine}, label_smoothing_factor=SMOOTHING)
    assert "prompt_mask" in first_batch(plain)  # the collator alone is enough for a stock trainer
    losses(plain)
