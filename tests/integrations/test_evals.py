"""Metrics of generated answers: what is asked, what is answered, who sees the number; and nothing is disturbed."""

from __future__ import annotations

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from contract.tiny import base_model as contract_model
from peft_reft import MixedReftModel
from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError
from peft_reft.integrations import GenerationMetric, ReftSFTTrainer, evaluate_generations

from .reading import LAYOUTS
from .tiny_sft import (
    PAIRS,
    base_model,
    conversations,
    encoded,
    losses,
    pairs,
    reft,
    tokenizer,
    trainable,
    trainer_for,
)

STEPS = 5
REFERENCES = [row["completion"].strip() for row in PAIRS]


class Notes:
    """A metric that keeps what it was called with, and says how many different words it saw."""

    def __init__(self) -> None:
        self.calls: list[dict[str, str]] = []

    def __call__(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        assert len(predictions) == len(references)
        self.calls.append(dict(zip(references, predictions, strict=True)))
        return {"words": float(len(set(" ".join(predictions).split())))}


@torch.no_grad()
def stepwise(
    model: nn.Module, prompts: list[list[int]] | None = None, references: list[str] = REFERENCES, **said: Any
) -> dict[str, str]:
    """Reference → greedy answer, one prompt and one token at a time, without a cache, its length said by hand."""
    model.eval()
    made, found = tokenizer(), {}
    prompts = [ids[:length] for ids, length in encoded()] if prompts is None else prompts
    for reference, prompt in zip(references, prompts, strict=True):
        ids = list(prompt)
        explicit = said if said or not hasattr(model, "peft_config") else {"prompt_lengths": torch.tensor([len(ids)])}
        for _ in range(STEPS):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False, **explicit).logits[0, -1].argmax()))
            if ids[-1] == made.eos_token_id:
                break
        found[reference] = made.decode(ids[len(prompt) :], skip_special_tokens=True)
    return found


def with_metric(metric: Any, **given: Any) -> dict[str, Any]:
    return {"eval_dataset": pairs(), "callbacks": [GenerationMetric(metric, max_new_tokens=STEPS)], **given}


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_the_stepwise_ones_in_every_layout(tmp_path: Path, layout: str, kind: type[SFTTrainer]) -> None:
    notes = Notes()
    trainer = trainer_for(tmp_path, kind=kind, given=with_metric(notes), **LAYOUTS[layout])
    found = trainer.evaluate()
    expected = stepwise(trainer.model)
    assert notes.calls == [expected]
    assert len(set(expected.values())) == len(PAIRS)
    with trainer.model.disable_adapter():
        assert stepwise(trainer.model) != expected  # the edit matters
    assert found["eval_words"] == len(set(" ".join(expected.values()).split()))
    assert trainer.state.log_history[-1]["eval_words"] == found["eval_words"]
    assert trainer.predict(trainer.eval_dataset).metrics["test_words"] == found["eval_words"]
    assert "test_words" not in trainer.state.log_history[-1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_beside_a_reft_is_asked_while_it_trains(tmp_path: Path, checkpointing: bool) -> None:
    """Also with gradient checkpointing, which TRL turns on unless it is told not to."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft()})
    notes = Notes()
    fields = {"eval_strategy": "steps", "eval_steps": 3, "gradient_checkpointing": checkpointing}
    trainer = trainer_for(tmp_path, model=model, given=with_metric(notes), **fields)
    found = losses(trainer)
    assert found[-1] < found[0]
    assert notes.calls == [stepwise(trainer.model)]


def test_conversations_are_asked_by_their_template(tmp_path: Path) -> None:
    notes, by_hand = Notes(), Notes()
    trainer = trainer_for(tmp_path, conversations(), given=with_metric(notes, eval_dataset=conversations()))
    trainer.evaluate()
    user, assistant, end = tokenizer().convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    prompts = [[user, *ids[:length], end, assistant] for ids, length in encoded()]
    assert notes.calls == [stepwise(trainer.model, prompts)]
    evaluate_generations(trainer.model, tokenizer(), conversations(), by_hand, max_new_tokens=STEPS)
    assert by_hand.calls == notes.calls


def test_of_several_turns_the_first_is_asked(tmp_path: Path) -> None:
    """Also by an adapter that edits every turn: a question is one turn."""
    turns = ["what is red ?", "apple", "and green ?", "leaf and grass"]
    roles = ["user", "assistant"] * 2
    data = Dataset.from_list([{"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}])
    for counted in ("first", "each"):
        notes = Notes()
        given = with_metric(notes, eval_dataset=data)
        trainer = trainer_for(tmp_path, data, config=reft(turns=counted), assistant_only_loss=True, given=given)
        trainer.evaluate()
        words = ["<|user|>", "what", "is", "red", "?", "<|end|>", "<|assistant|>"]
        prompt = tokenizer().convert_tokens_to_ids(words)
        where = torch.tensor([[[0, 1, len(prompt) - 2, len(prompt) - 1]]])
        assert notes.calls == [stepwise(trainer.model, [prompt], ["apple"], intervention_locations=where)]


def test_the_best_model_is_chosen_by_a_generated_metric(tmp_path: Path) -> None:
    """And an evaluation of what was loaded at the end gives the best number again."""
    fields = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 4,
        "learning_rate": 5e-2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "words",
        "greater_is_better": True,
    }
    trainer = trainer_for(tmp_path, given=with_metric(Notes()), **fields)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_words" in entry]
    values = [entry["eval_words"] for entry in history]
    losses_seen = [entry["eval_loss"] for entry in history]
    best = values.index(max(values))
    assert len(values) == 4
    assert best != 3  # neither the last nor the one of least loss
    assert best != losses_seen.index(min(losses_seen))
    assert trainer.state.best_metric == values[best]
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best + 1}"
    stored = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
    loaded = {name.replace(".default.", "."): tensor for name, tensor in trainable(trainer.model).items()}
    assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.items())
    assert trainer.evaluate()["eval_words"] == values[best]


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
def test_training_is_not_disturbed(tmp_path: Path, kind: type[SFTTrainer]) -> None:
    """Dropout and sampled answers draw random numbers; modes and the tokenizer's side are what they were."""
    fields: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "config": reft(dropout=0.3)}
    expected = losses(trainer_for(tmp_path, kind=kind, given={"eval_dataset": pairs()}, **fields))
    callback = GenerationMetric(Notes(), max_new_tokens=STEPS, generation={"do_sample": True, "top_k": 0})
    given = {"eval_dataset": pairs(), "callbacks": [callback]}
    measured = trainer_for(tmp_path, kind=kind, given=given, **fields)
    side = tokenizer().padding_side
    assert losses(measured) == expected
    assert tokenizer().padding_side == side
    model = measured.model.train()
    model.get_base_model().model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    evaluate_generations(model, tokenizer(), pairs(), Notes(), max_new_tokens=1)
    assert [module.training for module in model.modules()] == modes


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Stands for TensorBoard and the like, which come before the callbacks of a user."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs))


@pytest.mark.parametrize(("kind", "told"), [(SFTTrainer, False), (ReftSFTTrainer, True)])
def test_reporters_are_told_by_our_trainer(tmp_path: Path, kind: type[SFTTrainer], told: bool) -> None:
    reporter, notes = Reporter(), Notes()
    callbacks = [reporter, GenerationMetric(notes, max_new_tokens=STEPS)]
    trainer = trainer_for(tmp_path, kind=kind, given={"eval_dataset": pairs(), "callbacks": callbacks})
    trainer.evaluate()
    assert ("eval_words" in reporter.seen[-1]) == told
    assert len(notes.calls) == 1  # once per evaluation


def test_several_evaluation_sets_have_their_own_numbers(tmp_path: Path) -> None:
    notes = Notes()
    sets = {"one": pairs(PAIRS[:1]), "rest": pairs(PAIRS[1:])}
    trainer = trainer_for(tmp_path, given=with_metric(notes, eval_dataset=sets))
    found = trainer.evaluate()
    assert {"eval_one_words", "eval_rest_words"} <= found.keys()
    assert [list(call) for call in notes.calls] == [REFERENCES[:1], REFERENCES[1:]]
    assert "eval_words" in trainer.evaluate(pairs(PAIRS[:2]))  # a set that was not prepared before


def test_stated_prompts_are_passed_on(tmp_path: Path) -> None:
    """A `prompt_mask` that leaves the first token out moves `f2` by one, in the answers as in the loss."""
    masks = [[0] + [1] * (length - 1) + [0] * (len(ids) - length) for ids, length in encoded()]
    rows = {
        "input_ids": [ids for ids, _ in encoded()],
        "labels": [[-100] * length + ids[length:] for ids, length in encoded()],
        "prompt_mask": masks,
    }
    data, notes = Dataset.from_dict(rows), Notes()
    trainer = trainer_for(
        tmp_path, data, kind=ReftSFTTrainer, config=reft(positions="f2"), given=with_metric(notes, eval_dataset=data)
    )
    trainer.evaluate()
    expected = stepwise(trainer.model, intervention_locations=torch.tensor([[[1, 2]]]))
    assert notes.calls == [expected]
    assert expected != stepwise(trainer.model)


def test_any_model_that_generates_is_measured() -> None:
    """A plain one, one with a ReFT, and a LoRA beside a ReFT; rows as text, as messages or tokenised."""
    tokenized = [{"input_ids": ids, "labels": [-100] * n + ids[n:]} for ids, n in encoded()]
    tokenized.append({"input_ids": [5, 6], "labels": [-100, -100]})  # no answer: left out
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    models = [
        base_model(),
        get_peft_model(base_model(), reft()),
        MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft()}),
    ]
    seen = []
    for model in models:
        for rows in (pairs(), tokenized):
            notes = Notes()
            made = copy.deepcopy(tokenizer())
            found = evaluate_generations(model, made, rows, notes, batch_size=3, max_new_tokens=STEPS)
            assert notes.calls == [stepwise(model)]
            assert found == {"words": len(set(" ".join(notes.calls[0].values()).split()))}
            assert made.padding_side == tokenizer().padding_side
        seen.append(notes.calls[0])
    assert seen[0] != seen[1] != seen[2]


def test_rows_of_ones_own_in_the_trainer_of_transformers(tmp_path: Path) -> None:
    """Stock `Trainer`: its evaluation loss is that of a forward with labels, and the metric stands beside it."""
    data = Dataset.from_list([{"input_ids": ids, "labels": [-100] * n + ids[n:]} for ids, n in encoded()])
    notes, own = Notes(), Notes()
    args = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    model = get_peft_model(base_model(), reft())
    batches = GenerationMetric(notes, tokenizer=tokenizer(), max_new_tokens=STEPS)
    asked = GenerationMetric(own, rows=pairs(PAIRS[:2]), tokenizer=tokenizer(), max_new_tokens=STEPS)
    trainer = Trainer(
        model,
        args,
        eval_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer()),
        callbacks=[batches],
    )
    found = trainer.evaluate()
    assert notes.calls == [stepwise(model)]
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        assert_close(found["eval_loss"], model.eval()(**batch).loss.item())
    trainer.add_callback(asked)
    with pytest.raises(ConfigError, match="'eval_words', which the evaluation has already"):
        trainer.evaluate()
    trainer.remove_callback(batches)
    trainer.evaluate()
    assert list(own.calls[-1]) == REFERENCES[:2]


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    model, made = get_peft_model(base_model(), reft()), tokenizer()
    with pytest.raises(ConfigError, match="rows have 'prompt' and 'completion'"):
        evaluate_generations(model, made, [{"text": "what is red ?"}], Notes())
    with pytest.raises(ConfigError, match="no row has an answer"):
        evaluate_generations(model, made, [], Notes())
    with pytest.raises(PromptBoundaryError, match="has an answer and no prompt"):
        evaluate_generations(model, made, [{"input_ids": [5, 6], "labels": [5, 6]}], Notes())
    with pytest.raises(ConfigError, match="it is at least 1"):
        evaluate_generations(model, made, pairs(), Notes(), max_new_tokens=0)
    with pytest.raises(ConfigError, match="leave num_return_sequences out"):
        evaluate_generations(
            model, made, pairs(), Notes(), generation={"num_return_sequences": 2, "num_beams": 2}, max_new_tokens=1
        )
    for wrong in (0.5, {"words": "many"}, {1: 2.0}):
        with pytest.raises(ConfigError, match="the metric returned"):
            evaluate_generations(model, made, pairs(), lambda *texts, w=wrong: w, max_new_tokens=1)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="metric is a str"):
        GenerationMetric("bleu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the metric returns 'eval_loss'"):
        trainer_for(tmp_path, given=with_metric(lambda *texts: {"loss": 1.0})).evaluate()
    text = Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in PAIRS])
    with pytest.raises(PromptBoundaryError, match="no prompt"):
        trainer_for(
            tmp_path, text, config=reft(positions="all"), given=with_metric(Notes(), eval_dataset=text)
        ).evaluate()


def test_batches_that_say_other_things_are_refused(tmp_path: Path) -> None:
    rows = [
        {"input_ids": ids, "labels": [-100] * n + ids[n:], "intervention_locations": [[0, 1]]} for ids, n in encoded()
    ]
    data = Dataset.from_list(rows)
    trainer = trainer_for(tmp_path, data, kind=ReftSFTTrainer, given=with_metric(Notes(), eval_dataset=data))
    with pytest.raises(ConfigError, match="states intervention_locations"):
        trainer.evaluate()
    callback = GenerationMetric(Notes(), max_new_tokens=1)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ConfigError, match="Seq2SeqTrainer"):
        callback.measure({}, "eval", contract_model("t5"), [{"input_ids": ids, "decoder_input_ids": ids}], tokenizer())
    with pytest.raises(PromptBoundaryError, match="an answer starts at the first label"):
        callback.measure({}, "eval", base_model(), [{"input_ids": ids}], tokenizer())
    with pytest.raises(ConfigError, match="no processing_class"):
        callback.measure({}, "eval", base_model(), [], None)


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both blocks about generated answers, on the tiny model; the second says what the trainer's evaluation said."""
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text("utf-8")
    section = page.partition("## A metric of generated answers")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    cpu = partial(
        SFTConfig, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, gradient_checkpointing=False
    )
    monkeypatch.setattr("trl.SFTConfig", cpu)
    names: dict[str, Any] = {"base": base_model(), "rows": pairs(), "tokenizer": tokenizer()}
    for block in blocks:
        exec(block, names)
    printed = [line for line in capsys.readouterr().out.splitlines() if "loss" not in line]
    assert printed[-2:] == ["0.0", "{'exact': 0.0}"]
    assert Path(names["trainer"].state.best_model_checkpoint).is_dir()
