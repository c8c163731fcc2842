"""Stock trainers' forwards without labels: the prompt is that of the batch from which the trainer took them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import TrainerCallback
from trl import SFTTrainer

import peft_reft.training.boundary
import peft_reft.training.running

from .preferences import POLICIES, dpo_trainer, edits_of_passes, ends_of_prompts
from .reading import LAYOUTS, expected_tokens
from .test_kto import kto_data, kto_trainer
from .test_reward import trainer_of as reward_trainer
from .test_seq2seq_trainer import batch_of as seq2seq_batch
from .test_seq2seq_trainer import trainer_of as seq2seq_trainer
from .tiny_sft import PAIRS, first_batch, losses, pairs, reft, trainer_for

ENDS = {"positions": "f1+l2", "layers_to_transform": [0]}


def rows_seen(prediction: Any) -> dict[str, float]:
    return {"rows": float(len(prediction.predictions))}


def check_dpo(folder: Path, policy: str) -> None:
    """Policy, reference and the forward for the metric; prompts are those of the batch's `completion_mask`."""
    trainer = dpo_trainer(folder, POLICIES[policy](**ENDS), given={"compute_metrics": rows_seen})
    expected = ends_of_prompts(dict(next(iter(trainer.get_eval_dataloader()))), first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        assert trainer.evaluate()["eval_rows"] == 8
    assert passes == [expected] * 3


def check_kto(folder: Path, policy: str) -> None:
    """Beside its own pairs a batch holds mismatched ones, of other prompts: each forward gets its own."""
    given = {"compute_metrics": rows_seen, "eval_dataset": kto_data()}
    trainer = kto_trainer(folder, POLICIES[policy](**ENDS), given=given)
    expected = ends_of_prompts(dict(next(iter(trainer.get_eval_dataloader()))), first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        assert trainer.evaluate()["eval_rows"] == 8
    assert len(passes) == 5  # pairs and mismatched pairs, by policy and reference, and the metric's
    assert passes[-1] == expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("check", [check_dpo, check_kto])
def test_metrics_of_preferences(tmp_path: Path, check: Callable[[Path, str], None], policy: str) -> None:
    check(tmp_path, policy)


def test_metrics_of_rewards(tmp_path: Path) -> None:
    """A reward model has no completion: every attended token is prompt, with a metric as without."""
    trainer = reward_trainer(tmp_path, config=ENDS, given={"compute_metrics": rows_seen}, per_device_eval_batch_size=4)
    trainer.eval_dataset = trainer.train_dataset
    lengths = dict(next(iter(trainer.get_eval_dataloader())))["attention_mask"].sum(1).tolist()
    expected = {(row, at) for row, length in enumerate(lengths) for at in (0, length - 2, length - 1)}
    with edits_of_passes(trainer.model) as passes:
        assert trainer.evaluate()["eval_rows"] == len(lengths) == 2 * len(PAIRS)
    assert set(map(frozenset, passes)) == {frozenset(expected)}


def without_labels(trainer: SFTTrainer) -> list[dict[str, Any]]:
    """The batches of the trainer's evaluation data, without labels."""
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in trainer.get_eval_dataloader()]


def check_sft(folder: Path, layout: str, verb: str) -> None:
    given = {"compute_metrics": rows_seen, "eval_dataset": pairs()}
    trainer = trainer_for(folder, config=reft(**ENDS), given=given, **LAYOUTS[layout])
    expected = expected_tokens(without_labels(trainer)[0], first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        trainer.evaluate() if verb == "evaluate" else trainer.predict(trainer.eval_dataset)
    assert passes == [expected] * 2


@pytest.mark.parametrize(("layout", "verb"), [*((layout, "evaluate") for layout in LAYOUTS), ("padded", "predict")])
def test_metrics_of_answers(tmp_path: Path, layout: str, verb: str) -> None:
    check_sft(tmp_path, layout, verb)


def twice(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) * 2


class Popping(SFTTrainer):
    """As people write a loss of their own."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = twice(outputs, labels)
        return (loss, outputs) if return_outputs else loss


WAYS: dict[str, dict[str, Any]] = {
    "label_smoothing_factor": {"label_smoothing_factor": 0.2},
    "compute_loss_func": {"given": {"compute_loss_func": twice}},
    "compute_loss": {"kind": Popping},
}


def check_full_logits(folder: Path, layout: str, way: str) -> None:
    trainer = trainer_for(folder, config=reft(**ENDS), **WAYS[way], **LAYOUTS[layout])
    batch = first_batch(trainer)
    expected = expected_tokens(batch, first=1, last=2)
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    assert passes == [expected] * (1 if way == "compute_loss" else 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_losses_of_full_logits(tmp_path: Path, layout: str, way: str) -> None:
    check_full_logits(tmp_path, layout, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_such_a_loss_learns(tmp_path: Path, way: str) -> None:
    found = losses(trainer_for(tmp_path, **WAYS[way]))
    assert found[-1] < found[0]


def check_decoder(folder: Path) -> None:
    """A decoder's labels are longer or shorter than the encoder's tokens; its prompt is the start token."""
    trainer = seq2seq_trainer(folder, "decoder.block", smoothing=0.2)
    plain = seq2seq_batch(trainer)
    model = trainer.model.train()
    loss = trainer.compute_loss(model, dict(plain))
    logits = model(**plain).logits
    assert_close(
        loss, nn.functional.cross_entropy(logits.flatten(0, 1), plain["labels"].flatten(), label_smoothing=0.2)
    )


def test_label_smoothing_of_an_edited_decoder(tmp_path: Path) -> None:
    check_decoder(tmp_path)


@pytest.mark.slow  # it traces the model three times
def test_a_compiled_model_is_asked_too(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def metric(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {}

    given = {"compute_metrics": metric, "eval_dataset": pairs()}
    fields = {"torch_compile": True, "torch_compile_backend": "eager"}
    model = {"config": reft(layers_to_transform=[0])}
    trainer = trainer_for(tmp_path, given=given, **model, **fields)
    trainer.evaluate()
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    with torch.no_grad():
        assert_close(torch.from_numpy(seen[0]), trainer.model.eval()(**batch).logits)


class Asking(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """A callback that runs the model on prompts of its own, between two batches."""

    def __init__(self, prompts: Tensor) -> None:
        self.prompts = prompts

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: nn.Module = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model(input_ids=self.prompts)


def check_another_forward(folder: Path) -> None:
    trainer = trainer_for(folder, config=reft(**ENDS), given={"eval_dataset": pairs()})
    shape = next(iter(trainer.get_eval_dataloader()))["input_ids"].shape
    trainer.add_callback(Asking(torch.full(shape, 20)))
    with edits_of_passes(trainer.model) as passes:
        trainer.evaluate()
    width = shape[1]
    assert passes[-1] == {(row, column) for row in range(4) for column in (0, width - 2, width - 1)}


def test_another_forward_during_an_evaluation_is_a_prefill(tmp_path: Path) -> None:
    """Its tokens are of no batch, though their shape is that of one."""
    check_another_forward(tmp_path)


def not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peft_reft.training.boundary, "running_trainer", lambda: None)


def any_batch(patch: pytest.MonkeyPatch) -> None:
    """The first batch that is found is the forward's."""
    patch.setattr(peft_reft.training.running, "_same", lambda value, ids: isinstance(value, Tensor))


def masks_ignored(patch: pytest.MonkeyPatch) -> None:
    """Labels are looked for, a completion mask is not."""
    original = peft_reft.training.running._batches

    def batches(scope: Mapping[str, Any], ids: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
        for batch, prefix in original(scope, ids):
            yield {name: value for name, value in batch.items() if not name.endswith("completion_mask")}, prefix

    patch.setattr(peft_reft.training.running, "_batches", batches)


def variables_ignored(patch: pytest.MonkeyPatch) -> None:
    """Labels that were taken out of a batch are not looked for."""
    patch.setattr(peft_reft.training.running, "_supervises", lambda labels, ids: False)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], tuple[str, ...]]] = [
    (not_asked, check_dpo, ("reft",)),
    (not_asked, check_kto, ("reft",)),
    (not_asked, check_sft, ("packed", "evaluate")),
    (not_asked, check_full_logits, ("padded", "label_smoothing_factor")),
    (not_asked, check_decoder, ()),
    (any_batch, check_another_forward, ()),
    (masks_ignored, check_kto, ("lora+reft",)),
    (variables_ignored, check_full_logits, ("padding_free", "compute_loss")),
]


@pytest.mark.parametrize(("mutant", "check", "arguments"), MUTANTS)
def test_a_mutant_is_caught(
    tmp_path: Path,
    mutant: Callable[[pytest.MonkeyPatch], None],
    check: Callable[..., None],
    arguments: tuple[str, ...],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises((AssertionError, ValueError)):
            check(tmp_path, *arguments)
