"""Each mutant takes one guard of training away, and the check that holds with it must notice.

The checks train for real: a guard is there for what would otherwise be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq
from trl import SFTTrainer

import peft_reft.model
from contract.test_mutants import labels_ignored, packing_forgotten, shifted
from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError, ReftError
from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer
from peft_reft.integrations.evals import answers, metric
from peft_reft.integrations.trl import sft
from peft_reft.positions import Layout
from peft_reft.runtime import resolve
from peft_reft.training import boundary

from .reading import LAYOUTS, edited_tokens, expected_tokens
from .test_evals import (
    test_answers_are_the_stepwise_ones_in_every_layout as check_answers,
)
from .test_evals import test_training_is_not_disturbed as check_undisturbed
from .test_random_batches import test_batches_of_sft_trainers as check_random
from .test_sft import test_gradients_are_those_of_the_documents_one_by_one as check_gradients
from .test_sft_data import check_turns
from .test_sft_logits import evaluated, smoothed
from .test_sft_refusals import test_positions_in_the_data_reach_the_model as check_columns
from .test_sft_refusals import tokenized
from .tiny_sft import PAIRS, base_model, encoded, first_batch, losses, pairs, reft, tokenizer, trainer_for

Patch = pytest.MonkeyPatch


def check_layout(folder: Path, layout: str) -> None:
    """`f1+l3` edits the ends of every prompt."""
    trainer = trainer_for(folder, config=reft(positions="f1+l3", layers_to_transform=[0]), **LAYOUTS[layout])
    batch = first_batch(trainer)
    assert edited_tokens(trainer.model, batch) == expected_tokens(batch, first=1, last=3)


def check_one_token(folder: Path, how: str) -> None:
    """In a packed row one unmasked token is no prompt: the trainer masks the first label of whatever stands there."""
    rows = pairs([{"prompt": "tell", "completion": " me one thing"}, *PAIRS])
    data = rows if how == "a short prompt" else pairs()
    fields: dict[str, Any] = {} if how == "a short prompt" else {"completion_only_loss": False}
    with pytest.raises(PromptBoundaryError, match="need a prompt"):
        losses(trainer_for(folder, data, config=reft(positions="l1"), padding_free=True, **fields))


def check_fragments(folder: Path) -> None:
    """Nor is the first token of a fragment, in rows that a trainer cut for an adapter without positions to count."""
    cut = {"packing": True, "packing_strategy": "bfd_split", "max_length": 6}
    trainer = trainer_for(folder, config=reft(positions="all"), **cut)
    model = get_peft_model(base_model(), reft(positions="l1"))
    with pytest.raises(PromptBoundaryError, match="a fragment of a split document has no prompt"):
        [model(**batch) for batch in trainer.get_train_dataloader()]


def check_cut_rows(folder: Path, strategy: str) -> None:
    """Rows that are cut anywhere are refused, or `f2` edits nothing but the first two tokens of documents."""
    fields = {"packing": True, "packing_strategy": strategy, "max_length": 7, "per_device_train_batch_size": 8}
    config = reft(positions="f2", layers_to_transform=[0])
    try:
        trainer = trainer_for(folder, kind=ReftSFTTrainer, config=config, **fields)
    except ConfigError:
        return
    starts = {tuple(ids[:2]) for ids, _ in encoded()}
    for batch in trainer.get_train_dataloader():
        ids = batch["input_ids"].tolist()
        edited = sorted(edited_tokens(trainer.model, dict(batch)))
        found = [ids[row][column] for row, column in edited]
        assert set(zip(found[::2], found[1::2], strict=True)) <= starts


def check_metrics(folder: Path, verb: str) -> None:
    """A metric sees the logits of the forward with labels."""
    found, expected = evaluated(folder, ReftSFTTrainer, verb)
    assert np.array_equal(found, expected.numpy())


def twice(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return 2 * smoothed(outputs.logits, labels)


def check_full_logits(folder: Path, spec: str, way: str) -> None:
    """A loss of full logits is that of the tokens which the forward with labels edits; prompts are shorter than 7."""
    fields: dict[str, Any] = {"label_smoothing_factor": 0.2} if way == "smoothing" else {}
    given = {} if fields else {"compute_loss_func": twice}
    trainer = trainer_for(folder, kind=ReftSFTTrainer, config=reft(positions=spec), given=given, **fields)
    batch = first_batch(trainer)
    labelled = {name: value for name, value in batch.items() if name != "prompt_mask"}
    expected = smoothed(trainer.model.train()(**labelled).logits, batch["labels"]) * (1 if fields else 2)
    assert_close(trainer.compute_loss(trainer.model, batch), expected)


def check_lost_columns(folder: Path, how: str) -> None:
    """Stated positions are refused, or edit the tokens that they name in their own documents."""
    fields: dict[str, Any] = {"packing": True, "max_length": 64} if how == "packing" else {}
    fields = fields or {"max_length": 9, "truncation_mode": "keep_end"}
    data = tokenized(intervention_locations=[[[1]]] * 4)
    config = reft(positions="l1", layers_to_transform=[0])
    try:
        trainer = trainer_for(folder, data, kind=ReftSFTTrainer, config=config, **fields)
    except ConfigError:
        return
    batch = first_batch(trainer)
    named = {ids[1] for ids, _ in encoded()}
    edited = edited_tokens(trainer.model, batch)
    assert len(edited) == 4
    assert {batch["input_ids"][at].item() for at in edited} <= named


def check_smoothing_by_hand(folder: Path) -> None:
    """The collator alone: a batch without labels edits what the batch with labels edits, padded on either side."""
    for side in ("left", "right"):
        made = tokenizer()
        collate = ReftDataCollator(DataCollatorForSeq2Seq(made, return_tensors="pt"))
        made.padding_side, before = side, made.padding_side
        try:
            batch = collate([{"input_ids": ids, "labels": [-100] * n + ids[n:]} for ids, n in encoded()])
        finally:
            made.padding_side = before
        model = get_peft_model(base_model(), reft(positions="f7+l2")).eval()
        labels = batch.pop("labels")
        with torch.no_grad():
            found = model(**batch).logits
            del batch["prompt_mask"]
            assert torch.equal(found, model(**batch, labels=labels).logits)


def one_token_counts(patch: Patch) -> None:
    """In a packed row a prompt of one token is a prompt."""
    original = resolve.layout_of

    def layout_of(real: Tensor, start: Tensor, prompt: Tensor, **known: Any) -> Layout:
        found = original(real, start, prompt, **known)
        return replace(found, prompt=prompt & found.real)

    patch.setattr(resolve, "layout_of", layout_of)


def turns_forgotten(patch: Patch) -> None:
    """`turns="each"` is read as `"first"`."""
    patch.setattr(Layout, "by_turns", lambda self: self)


def cut_rows_accepted(patch: Patch) -> None:
    """The trainer takes every packing strategy."""
    for module in (sft, boundary, peft_reft.model):
        patch.setattr(module, "refuse_cut_rows", lambda *args: None)


def collator_not_wrapped(patch: Patch) -> None:
    """Batches carry no prompt mask, and the trainer is not asked for their labels."""
    patch.setattr(sft, "has_reft", lambda model: False)
    patch.setattr(boundary, "running_trainer", lambda: None)


def mask_of_everything(patch: Patch) -> None:
    """The collator marks every attended token as prompt."""
    patch.setattr(
        "peft_reft.integrations.data.collator.prompt_mask_of", lambda batch, stack: batch["attention_mask"].clone()
    )


def columns_dropped(patch: Patch) -> None:
    """The trainer keeps the columns that the model's forward names."""
    patch.delattr(ReftSFTTrainer, "_set_signature_columns_if_needed")


def lost_columns_accepted(patch: Patch) -> None:
    """Preparation may lose or move stated positions."""
    patch.setattr(sft, "refuse_lost_columns", lambda *args, **kwargs: None)


def padded_on_the_right(patch: Patch) -> None:
    """Questions are padded after their last token."""
    original = answers._left_padded

    def right(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        batch = original(*args, **kwargs)
        order = batch["attention_mask"].sort(dim=1, descending=True, stable=True).indices
        return {name: value.gather(1, order) for name, value in batch.items()}

    patch.setattr(answers, "_left_padded", right)


def whole_sequences_asked(patch: Patch) -> None:
    """The answer stands in the question."""
    original = metric.questions_of_batch
    patch.setattr(
        metric,
        "questions_of_batch",
        lambda batch: [replace(asked, ids=torch.cat([asked.ids, asked.reference])) for asked in original(batch)],
    )


def random_numbers_spent(patch: Patch) -> None:
    """Sampling an answer moves the generator that dropout draws from."""
    original = torch.random.fork_rng
    patch.setattr("torch.random.fork_rng", lambda *args, **kwargs: original([], enabled=False))


EVERYWHERE = (shifted, packing_forgotten, turns_forgotten)
MUTANTS: list[tuple[Callable[[Patch], None], Callable[..., None], tuple[Any, ...]]] = [
    *((shifted, check_layout, (layout,)) for layout in LAYOUTS),
    *((labels_ignored, check_layout, (layout,)) for layout in LAYOUTS),
    *((packing_forgotten, check_layout, (layout,)) for layout in ("padding_free", "packed")),
    *((labels_ignored, check_gradients, (layout,)) for layout in LAYOUTS),
    *((packing_forgotten, check_gradients, (layout,)) for layout in ("padding_free", "packed")),
    *((one_token_counts, check_one_token, (how,)) for how in ("a short prompt", "plain text")),
    (one_token_counts, check_fragments, ()),
    *(
        (mutant, check_random, ("padding_free to 8", kind, 1))
        for mutant in EVERYWHERE
        for kind in (SFTTrainer, ReftSFTTrainer)
    ),
    *((turns_forgotten, check_turns, ("each", layout)) for layout in LAYOUTS),
    *((cut_rows_accepted, check_cut_rows, (strategy,)) for strategy in ("wrapped", "bfd_split")),
    *((collator_not_wrapped, check_metrics, (verb,)) for verb in ("evaluate", "predict")),
    *((collator_not_wrapped, check_full_logits, ("f2+l2", way)) for way in ("smoothing", "custom")),
    (mask_of_everything, check_full_logits, ("f2+l2", "smoothing")),
    (mask_of_everything, check_full_logits, ("f7", "smoothing")),
    (mask_of_everything, check_metrics, ("evaluate",)),
    (mask_of_everything, check_smoothing_by_hand, ()),
    (columns_dropped, check_columns, ()),
    *((lost_columns_accepted, check_lost_columns, (how,)) for how in ("packing", "keep_end")),
    *((padded_on_the_right, check_answers, (layout, SFTTrainer)) for layout in LAYOUTS),
    (whole_sequences_asked, check_answers, ("packed", ReftSFTTrainer)),
    (random_numbers_spent, check_undisturbed, (SFTTrainer,)),
]


@pytest.mark.parametrize(("mutant", "check", "arguments"), MUTANTS)
def test_a_mutant_is_caught(
    tmp_path: Path, mutant: Callable[[Patch], None], check: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    check(tmp_path, *arguments)
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises((AssertionError, ReftError, pytest.fail.Exception)):
            check(tmp_path, *arguments)
