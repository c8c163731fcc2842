"""Random prompts, turns, specs, paddings and packings through each trainer, against the slow reference of the rules.

The reference sees every document by itself, as the data set has it; the trainer's batches are taken apart by ids.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTTrainer

from peft_reft.integrations import ReftDataCollator, ReftSFTTrainer
from positions.reference import edited_tokens as slowly

from .reading import edited_tokens
from .tiny_sft import base_model, first_batch, reft, tokenizer, trainer_for

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padded to 8": {"pad_to_multiple_of": 8},
    "padding_free": {"padding_free": True},
    "padding_free to 8": {"padding_free": True, "pad_to_multiple_of": 8},
    "packed": {"packing": True, "max_length": 32},
}
SEEDS = range(4)
Row = tuple[list[int], list[int]]


def rows_of(chance: random.Random) -> list[Row]:
    """(ids, labels) of six documents: prompts of 2 to 9 tokens, answers of 1 to 4, and sometimes further turns."""
    rows = []
    for number in range(6):
        ids, labels = [6 + number], [-100]  # the first id tells documents apart
        for turn in range(chance.choice([1, 1, 2, 3])):
            asked = [chance.randrange(12, 60) for _ in range(chance.randint(1, 8 if turn == 0 else 4))]
            answer = [chance.randrange(12, 60) for _ in range(chance.randint(1, 4))]
            ids += asked + answer
            labels += [-100] * len(asked) + answer
        ending = chance.randint(0, 2)  # what follows the last answer belongs to no prompt
        ids += [5] * ending
        labels += [-100] * ending
        rows.append((ids, labels))
    return rows


def spec_of(chance: random.Random) -> str:
    low, high = sorted(chance.sample(range(-4, 5), 2))
    terms = [
        f"f{chance.randint(1, 9)}",
        f"l{chance.randint(1, 9)}",
        f"p[{low}:{high}]" if (low < 0) == (high < 0) else f"p[{high}:]",
        "prompt",
        "all",
        "generated",
        f"g[{chance.randint(0, 2)}:{chance.randint(3, 5)}]",
    ]
    chosen = chance.sample(terms, chance.randint(1, 2))
    left_out = [term for term in terms[:2] if term not in chosen]  # the same term twice is a syntax error
    return "+".join(chosen) + (f"-{chance.choice(left_out)}" if left_out and chance.random() < 0.3 else "")


def expected_in(batch: dict[str, Any], rows: list[Row], spec: str, turns: str) -> set[tuple[int, int]]:
    """The tokens of a batch that the reference edits in the documents one by one."""
    found: set[tuple[int, int]] = set()
    seen = 0
    for row, line in enumerate(batch["input_ids"].tolist()):
        for ids, labels in rows:
            for at in range(len(line) - len(ids) + 1):
                if line[at : at + len(ids)] == ids:
                    seen += 1
                    terms = slowly(spec, [[True] * len(ids)], labels=[labels], turns=turns)
                    found |= {(row, at + column) for term in terms for _, column in term}
    assert seen == len(rows)
    return found


def check(batch: dict[str, Any], rows: list[Row], chance: random.Random, first: PeftModel | None = None) -> None:
    """Three random specs: with labels, and where the batch states prompts also without."""
    for number in range(3):
        spec, turns = spec_of(chance), chance.choice(["first", "each"])
        model = first
        if number or first is None:
            model = get_peft_model(base_model(), reft(positions=spec, turns=turns, layers_to_transform=[0]))
        else:
            spec, turns = "f2+l3", "each"
        expected = expected_in(batch, rows, spec, turns)
        forms = [{name: value for name, value in batch.items() if name != "prompt_mask"}]
        if "prompt_mask" in batch:
            forms.append({name: value for name, value in batch.items() if name != "labels"})
        for form in forms:
            fused = model is first and "labels" in form
            assert edited_tokens(model, form, fused=fused) == expected, (spec, turns, list(form))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_of_sft_trainers(tmp_path: Path, layout: str, kind: type[SFTTrainer], seed: int) -> None:
    chance = random.Random(seed)
    rows = rows_of(chance)
    data = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    config = reft(positions="f2+l3", turns="each", layers_to_transform=[0])
    fields = {"per_device_train_batch_size": 6, **LAYOUTS[layout]}
    trainer = trainer_for(tmp_path, data, kind=kind, config=config, **fields)
    batch = first_batch(trainer)
    assert ("prompt_mask" in batch) == (kind is ReftSFTTrainer)
    check(batch, rows, chance, trainer.model)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_the_trainer_of_transformers(tmp_path: Path, side: str, seed: int) -> None:
    chance = random.Random(seed)
    rows = rows_of(chance)
    made = copy.deepcopy(tokenizer())
    made.padding_side = side
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=6, report_to="none", use_cpu=True, disable_tqdm=True
    )
    data = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    collator = ReftDataCollator(DataCollatorForSeq2Seq(made))
    trainer = Trainer(get_peft_model(base_model(), reft()), args, train_dataset=data, data_collator=collator)
    check(first_batch(trainer), rows, chance)


def test_the_reference_edits_something_and_not_everything() -> None:
    """Random specs would be no check if they mostly chose nothing or all."""
    chance, shares = random.Random(0), []
    for _ in range(200):
        ids, labels = rows_of(chance)[0]
        tokens = {token for term in slowly(spec_of(chance), [[True] * len(ids)], labels=[labels]) for token in term}
        shares.append(len(tokens) / len(ids))
    assert sum(0 < share < 1 for share in shares) > 100
