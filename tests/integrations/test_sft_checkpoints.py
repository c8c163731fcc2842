"""Checkpoints of a stock `SFTTrainer`: resuming to the last bit, the best model, what stands in the folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl import SFTTrainer

from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import AdapterLoadError
from peft_reft.integrations import ReftSFTTrainer

from .reading import LAYOUTS
from .tiny_sft import PAIRS, base_model, first_batch, pairs, reft, trainable, trainer_for

MANY = [*PAIRS, *[{"prompt": row["prompt"] + " please", "completion": row["completion"]} for row in PAIRS]]
SAVING = {"save_strategy": "steps", "save_steps": 3}
DROPOUT = {"dropout": 0.3}


def run(folder: Path, *, kind: type[SFTTrainer] = SFTTrainer, resume: Path | None = None, **fields: Any) -> SFTTrainer:
    """Six steps over eight rows in batches of two, in another order every epoch, with dropout."""
    fields = {"max_steps": 6, "per_device_train_batch_size": 2, **SAVING, **fields}
    trainer = trainer_for(folder, pairs(MANY), kind=kind, config=reft(**DROPOUT), **fields)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def logged(trainer: SFTTrainer) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("layout", ["padded", "padding_free"])
def test_three_steps_and_three_more_are_six(tmp_path: Path, layout: str, kind: type[SFTTrainer]) -> None:
    whole = run(tmp_path / "whole", kind=kind, **LAYOUTS[layout])
    resumed = run(tmp_path / "resumed", kind=kind, resume=tmp_path / "whole" / "checkpoint-3", **LAYOUTS[layout])
    assert logged(resumed) == logged(whole)
    assert len({loss for _, loss in logged(whole)}) == 6
    expected = trainable(whole.model)
    assert len(expected) == 9  # three blocks of three tensors
    for name, parameter in trainable(resumed.model).items():
        assert torch.equal(parameter, expected[name])
    files = [
        load_file(tmp_path / name / "checkpoint-6" / "adapter_model.safetensors") for name in ("whole", "resumed")
    ]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


def test_a_run_stopped_half_way_goes_on(tmp_path: Path) -> None:
    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    config = reft(**DROPOUT)
    fields = {"max_steps": 6, "per_device_train_batch_size": 2, **SAVING}
    stopped = trainer_for(tmp_path, pairs(MANY), config=config, given={"callbacks": [Stop()]}, **fields)
    stopped.train()
    assert stopped.state.global_step == 3
    resumed = trainer_for(tmp_path, pairs(MANY), config=reft(**DROPOUT), **fields)
    resumed.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole")
    assert logged(resumed) == logged(whole)


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    fields = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "greater_is_better": True,  # the worst loss, so that the best model is not the last
    }
    trainer = trainer_for(tmp_path, given={"eval_dataset": pairs()}, **fields)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"
    stored = load_file(best / "adapter_model.safetensors")
    loaded = {name.replace(".default.", "."): tensor for name, tensor in trainable(trainer.model).items()}
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.items())
    last = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    assert not any(torch.equal(last[name], tensor) for name, tensor in stored.items())
    assert trainer.evaluate()["eval_loss"] == max(
        e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e
    )


def test_every_checkpoint_and_the_result_are_adapters_in_our_format(tmp_path: Path) -> None:
    trainer = run(tmp_path / "run")
    trainer.save_model(str(tmp_path / "result"))
    batch = first_batch(trainer)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        for folder in (tmp_path / "run" / "checkpoint-6", tmp_path / "result"):
            check_folder(folder)
            loaded = PeftModel.from_pretrained(base_model(), str(folder)).eval()
            assert torch.equal(loaded(**batch).logits, expected)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan"])
def test_a_checkpoint_that_does_not_fit_is_not_resumed_from(tmp_path: Path, damage: str) -> None:
    """Resuming reads weights only (PEFT's `load_adapter` of an existing name): what they can tell is checked."""
    trainer = run(tmp_path, max_steps=3)
    weights = tmp_path / "checkpoint-3" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][:1].clone() if damage == "shape" else tensors[name] * float("nan")
    save_file(tensors, weights)
    with pytest.raises(AdapterLoadError, match="reft_0"):
        trainer.train(resume_from_checkpoint=str(weights.parent))
