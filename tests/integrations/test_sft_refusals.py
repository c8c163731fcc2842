"""What `ReftSFTTrainer` does not accept, and what it keeps that a plain trainer drops."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTTrainer

from peft_reft.hub_format.errors import ConfigError, LocationError
from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer

from .reading import edited_tokens
from .tiny_sft import (
    base_model,
    encoded,
    first_batch,
    losses,
    reft,
    sft_config,
    tokenizer,
    trainable,
    trainer_for,
)


def ours(folder: Path, dataset: Dataset | None = None, **fields: Any) -> SFTTrainer:
    return trainer_for(folder, dataset, kind=ReftSFTTrainer, **fields)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("spec", ["l1", "f7+l7", "prompt", "p[1:3]", "generated", "f2", "all-l1"])
def test_rows_that_are_cut_anywhere_are_refused(tmp_path: Path, strategy: str, spec: str) -> None:
    fields = {"packing": True, "packing_strategy": strategy, "max_length": 16}
    with pytest.raises(ConfigError, match=r"packing_strategy='bfd'") as refused:
        ours(tmp_path, config=reft(positions=spec), **fields)
    assert strategy in str(refused.value)
    assert spec in str(refused.value)
    with pytest.raises(ConfigError, match="cuts documents"):
        ours(tmp_path, model=get_peft_model(base_model(), reft(positions=spec)), **fields)
    with pytest.raises(ConfigError, match="cuts documents"):
        ours(tmp_path, config=reft(positions=spec), packing_strategy=strategy, max_length=16, eval_packing=True)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("spec", ["l1", "f7+l7", "f2", "all-l1"])
def test_a_plain_trainer_refuses_them_too(tmp_path: Path, strategy: str, spec: str) -> None:
    """An adapter that it adds: before any data is prepared. One that it was given: before the first step."""
    fields = {"packing": True, "packing_strategy": strategy, "max_length": 16}
    base = base_model()
    with pytest.raises(ConfigError, match=r"packing_strategy='bfd'"):
        trainer_for(tmp_path, model=base, given={"peft_config": reft(positions=spec)}, **fields)
    assert not any("reft" in name for name, _ in base.named_modules())
    model = get_peft_model(base_model(), reft(positions=spec))
    trainer = trainer_for(tmp_path, model=model, **fields)
    before = trainable(model)
    with pytest.raises(ConfigError, match="cuts documents"):
        trainer.train()
    assert all(torch.equal(before[name], after) for name, after in trainable(model).items())
    trainer.data_collator = ReftDataCollator(trainer.data_collator)  # its mask is made of the same labels
    with pytest.raises(ConfigError, match="cuts documents"):
        trainer.train()


def test_another_model_may_run_while_a_trainer_cuts_rows(tmp_path: Path) -> None:
    """What is refused is the trainer's own model: a callback may ask a second one, or load an adapter."""
    other = get_peft_model(base_model(), reft(positions="f2+l2"))
    ids = torch.tensor([encoded()[0][0]])
    with torch.no_grad():
        expected = other.eval()(input_ids=ids).logits
    found = []

    class Asking(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            get_peft_model(base_model(), reft(positions="f2+l2"))
            with torch.no_grad():
                found.append(other(input_ids=ids).logits)

    fields = {"packing": True, "packing_strategy": "wrapped", "max_length": 16}
    lora = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}
    losses(trainer_for(tmp_path, model=base_model(), given={**lora, "callbacks": [Asking()]}, **fields))
    assert len(found) == 3
    assert all(torch.equal(logits, expected) for logits in found)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_cut_rows_are_no_matter_where_no_position_counts(tmp_path: Path, strategy: str) -> None:
    fields = {"packing": True, "packing_strategy": strategy, "max_length": 16}
    losses(ours(tmp_path, config=reft(positions="all"), **fields))
    inactive = get_peft_model(base_model(), reft(positions="all"))
    inactive.add_adapter("other", reft(positions="l1"))
    losses(ours(tmp_path, model=inactive, **fields))


@pytest.mark.parametrize("fields", [{}, {"packing": False, "packing_strategy": "wrapped"}, {"packing": True}])
def test_whole_documents_are_accepted(tmp_path: Path, fields: dict[str, Any]) -> None:
    losses(ours(tmp_path, config=reft(positions="l1"), **{"max_length": 32, **fields}))


def tokenized(**columns: list[Any]) -> Dataset:
    rows = [ids for ids, _ in encoded()]
    labels = [[-100] * length + ids[length:] for ids, length in encoded()]
    return Dataset.from_dict({"input_ids": rows, "labels": labels, **columns})


def test_positions_in_the_data_reach_the_model(tmp_path: Path) -> None:
    data = tokenized(intervention_locations=[[[1, 3]], [[0, -1]], [[2, 3]], [[1, 2]]])
    chosen = {tuple(ids): [1, 3] for ids, _ in encoded()[:1]}
    chosen |= {tuple(encoded()[1][0]): [0], tuple(encoded()[2][0]): [2, 3], tuple(encoded()[3][0]): [1, 2]}
    for layout in ({}, {"padding_free": True}):
        trainer = ours(tmp_path, data, config=reft(positions="l1", layers_to_transform=[0]), **layout)
        batch = first_batch(trainer)
        flat = batch["input_ids"].tolist()
        expected = {
            (row, at + column)
            for row, line in enumerate(flat)
            for ids, columns in chosen.items()
            for at in range(len(line))
            if tuple(line[at : at + len(ids)]) == ids
            for column in columns
        }
        assert edited_tokens(trainer.model, batch) == expected
        losses(trainer)


def test_a_prompt_mask_in_the_data_wins_over_labels(tmp_path: Path) -> None:
    masks = [[0] + [1] * (length - 1) + [0] * (len(ids) - length) for ids, length in encoded()]
    trainer = ours(tmp_path, tokenized(prompt_mask=masks), config=reft(positions="f1", layers_to_transform=[0]))
    batch = first_batch(trainer)
    assert edited_tokens(trainer.model, batch) == {(row, 1) for row in range(4)}


@pytest.mark.parametrize("column", ["prompt_mask", "prompt_lengths", "intervention_locations"])
def test_positions_that_packing_would_drop_are_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(ConfigError, match=column):
        ours(tmp_path, tokenized(**{column: [[1]] * 4}), packing=True, max_length=32)


@pytest.mark.parametrize("column", ["prompt_mask", "prompt_lengths", "intervention_locations"])
def test_positions_that_truncation_would_move_are_refused(tmp_path: Path, column: str) -> None:
    data = tokenized(**{column: [[1]] * 4})
    with pytest.raises(ConfigError, match="which is cut off"):
        ours(tmp_path, data, max_length=8, truncation_mode="keep_end")
    ours(tmp_path, data, truncation_mode="keep_end")


def test_a_mask_that_truncation_leaves_longer_than_its_tokens_is_refused(tmp_path: Path) -> None:
    masks = [[1] * length + [0] * (len(ids) - length) for ids, length in encoded()]
    with pytest.raises(LocationError, match="cut it wherever its tokens are cut"):
        losses(ours(tmp_path, tokenized(prompt_mask=masks), max_length=8))


def test_a_model_given_by_name_may_bring_its_adapter(tmp_path: Path) -> None:
    path = str(tmp_path / "base")
    base_model().save_pretrained(path)
    get_peft_model(LlamaForCausalLM.from_pretrained(path), reft()).save_pretrained(path)
    given = {"model": path, "train_dataset": tokenized(), "processing_class": tokenizer()}
    trainer = ReftSFTTrainer(**given, args=sft_config(tmp_path, model_init_kwargs={"device_map": None}))
    assert isinstance(trainer.data_collator, ReftDataCollator)
    args = sft_config(tmp_path, model_init_kwargs={"device_map": None}, packing=True, packing_strategy="wrapped")
    args.max_length = 16
    with pytest.raises(ConfigError, match="cuts documents"):
        ReftSFTTrainer(**given, args=args)


def test_without_a_reft_adapter_it_is_the_plain_trainer(tmp_path: Path) -> None:
    lora = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}
    plain = trainer_for(tmp_path, model=base_model(), given=lora)
    trainer = ours(tmp_path, model=base_model(), given=lora, packing_strategy="wrapped")
    assert not isinstance(trainer.data_collator, ReftDataCollator)
    assert losses(trainer) == losses(plain)
    for name, parameter in trainable(plain.model).items():
        assert torch.equal(parameter, trainable(trainer.model)[name])


def test_it_takes_what_the_plain_trainer_takes() -> None:
    assert inspect.signature(ReftSFTTrainer) == inspect.signature(SFTTrainer)
    assert issubclass(ReftSFTTrainer, SFTTrainer)


def test_masks_without_labels_are_still_refused_at_evaluation(tmp_path: Path) -> None:
    """TRL's own guard looks at the collator's class: the wrapper must not hide it."""
    trainer = ours(tmp_path, tokenized(), dataset_kwargs={"skip_prepare_dataset": True})
    data = tokenized(completion_mask=[[1] * len(ids) for ids, _ in encoded()]).remove_columns("labels")
    with pytest.raises(ValueError, match="no 'labels'"):
        trainer.evaluate(data)
