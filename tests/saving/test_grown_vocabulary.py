"""A vocabulary that grew on a base in a folder: PEFT then saves embeddings unasked, and every way of loading has them.

The expected logits are those of the model in memory before it was saved, with its adapter and without.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from mixed.tiny import rows, tokenizer
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from contract.tiny import ARCHITECTURES, VOCABULARY, base_model
from peft_reft import MixedReftModel, ReftConfig, save_pretrained
from peft_reft.hub_format.errors import AdapterLoadError
from peft_reft.hub_format.manifest import WEIGHTS_NAME

NEW = [VOCABULARY, VOCABULARY + 1]
GROWN = VOCABULARY + 6
IDS = torch.tensor([[5, NEW[0], 9, NEW[1], 11], [7, 8, NEW[1], 30, NEW[0]]])
PARTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": NEW},
    "tokens_and_head": {"trainable_token_indices": {"embed_tokens": NEW}, "modules_to_save": ["lm_head"]},
}
CASES = [(part, tied) for part in PARTS for tied in (False, True) if (part, tied) != ("tokens_and_head", True)]
"""PEFT itself refuses tokens of a tied embedding whose head is saved in full."""


@dataclass(frozen=True)
class Trained:
    """A model whose every trained parameter was moved, what it computes, and the folder of its base."""

    model: PeftModel
    base: Path
    edited: Tensor
    plain: Tensor


def llama(tied: bool) -> nn.Module:
    config = base_model("llama").config
    config.tie_word_embeddings = tied
    torch.manual_seed(3)
    return hf.LlamaForCausalLM(config)


def grown(base: Path) -> Any:
    model = hf.AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(11)  # other rows than those that were trained on
        model.resize_token_embeddings(GROWN)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def moved(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def trained(root: Path, part: str, tied: bool) -> Trained:
    llama(tied).save_pretrained(root / "base")
    base = grown(root / "base")
    with torch.no_grad():
        base.get_input_embeddings().weight[VOCABULARY:] += 0.5  # rows that only this model has
    config = ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l1", init_weights=False, **PARTS[part])
    model = moved(get_peft_model(base, config))
    edited = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    return Trained(model, root / "base", edited, plain)


def agrees(model: Any, case: Trained) -> None:
    assert torch.equal(logits(model), case.edited)
    with model.disable_adapter():
        assert torch.equal(logits(model), case.plain)


@pytest.mark.parametrize(("part", "tied"), CASES)
def test_every_way_of_loading_takes_what_was_saved(part: str, tied: bool, tmp_path: Path) -> None:
    case = trained(tmp_path, part, tied)
    case.model.save_pretrained(str(tmp_path / "stock"))
    save_pretrained(case.model, tmp_path / "own")
    for folder in (tmp_path / "stock", tmp_path / "own"):
        agrees(PeftModel.from_pretrained(grown(case.base), str(folder)), case)
        other = PeftModel.from_pretrained(grown(case.base), str(folder), adapter_name="other")
        agrees(other, case)
        other.load_adapter(str(folder), "other")  # as a trainer resumes
        agrees(other, case)
        other.load_adapter(str(folder), "second")
        other.set_adapter("second")
        agrees(other, case)


@pytest.mark.parametrize(("part", "tied"), CASES)
def test_transformers_loads_it_too(part: str, tied: bool, tmp_path: Path) -> None:
    case = trained(tmp_path, part, tied)
    case.model.save_pretrained(str(tmp_path / "saved"))
    model = grown(case.base)
    model.load_adapter(str(tmp_path / "saved"))
    assert torch.equal(logits(model), case.edited)


@pytest.mark.parametrize("part", PARTS)
def test_autopeft_grows_the_base_by_the_tokenizer_beside_the_adapter(part: str, tmp_path: Path) -> None:
    case = trained(tmp_path, part, False)
    beside = tokenizer()
    beside.add_tokens([f"<new{number}>" for number in range(GROWN - len(beside))])
    case.model.save_pretrained(str(tmp_path / "saved"))
    beside.save_pretrained(tmp_path / "saved")
    agrees(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved")), case)


@pytest.mark.parametrize("part", ["head", "embeddings", "both"])
def test_a_module_that_is_saved_in_full_is_saved_once(part: str, tmp_path: Path) -> None:
    case = trained(tmp_path, part, False)
    case.model.save_pretrained(str(tmp_path))
    names = [name for name in load_file(tmp_path / WEIGHTS_NAME) if ".reft_" not in name]
    wanted = [f"{name}.weight" for name in ("lm_head", "model.embed_tokens")]
    saved = [f"{name.removesuffix('weight')}original_module.weight" for name in wanted]
    saved = [name for name in saved if any(f"{part}." in name for part in PARTS[part]["modules_to_save"])]
    assert sorted(names) == sorted(f"base_model.model.{name}" for name in (*wanted, *saved))


def with_copies(folder: Path, shift: float = 0.0) -> None:
    """The folder as PEFT writes it by itself: what is trained in full stands there under two names."""
    weights = load_file(folder / WEIGHTS_NAME)
    for name in [name for name in weights if name.endswith(".original_module.weight")]:
        module = name.removesuffix(".original_module.weight")
        weights[f"{module}.modules_to_save.weight"] = weights[f"{module}.weight"].clone() + shift
    config = ReftConfig.from_pretrained(str(folder))
    config.base_identity = config.recorded_base
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("part", ["head", "embeddings", "both"])
def test_what_peft_saved_under_two_names_is_loaded(part: str, tied: bool, tmp_path: Path) -> None:
    case = trained(tmp_path, part, tied)
    case.model.save_pretrained(str(tmp_path / "saved"))
    with_copies(tmp_path / "saved")
    agrees(PeftModel.from_pretrained(grown(case.base), str(tmp_path / "saved")), case)


def test_two_names_with_two_values_are_refused(tmp_path: Path) -> None:
    case = trained(tmp_path, "head", False)
    case.model.save_pretrained(str(tmp_path / "saved"))
    with_copies(tmp_path / "saved", shift=1.0)
    with pytest.raises(AdapterLoadError, match=r"lm_head.*two values"):
        PeftModel.from_pretrained(grown(case.base), str(tmp_path / "saved"))


def test_a_base_whose_vocabulary_did_not_grow_is_refused(tmp_path: Path) -> None:
    case = trained(tmp_path, "both", False)
    case.model.save_pretrained(str(tmp_path / "saved"))
    small = hf.AutoModelForCausalLM.from_pretrained(case.base)
    with pytest.raises((AdapterLoadError, RuntimeError), match=f"{GROWN}.*{VOCABULARY}"):
        PeftModel.from_pretrained(small, str(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "t5", "bart"])
def test_embeddings_of_any_name_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    base_model(name).save_pretrained(tmp_path / "base")

    def base(seed: int) -> Any:
        model = type(base_model(name)).from_pretrained(tmp_path / "base")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(GROWN)
        return model

    task = next(known.task_type for known in ARCHITECTURES if known.name == name)
    model = moved(get_peft_model(base(1), ReftConfig(task_type=task, r=2, positions="f1", init_weights=False)))
    call = {"input_ids": IDS} if task == "CAUSAL_LM" else {"input_ids": IDS, "decoder_input_ids": IDS[:, :1]}
    with torch.no_grad():
        expected = model.eval()(**call).logits
    model.save_pretrained(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(base(2), str(tmp_path / "saved")).eval()(**call).logits, expected)


def test_a_bundle_of_a_grown_base_is_loaded_and_its_lora_alone(tmp_path: Path) -> None:
    llama(False).save_pretrained(tmp_path / "base")
    configs = {
        "default": LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False),
        "edit": ReftConfig(task_type="CAUSAL_LM", r=2, init_weights=False),
    }
    base = grown(tmp_path / "base")
    with torch.no_grad():
        base.get_input_embeddings().weight[VOCABULARY:] += 0.5
    mixed = MixedReftModel.from_configs(base, configs)
    mixed.save_pretrained(str(tmp_path / "both"))
    expected = logits(mixed)
    assert torch.equal(
        logits(MixedReftModel.from_pretrained(grown(tmp_path / "base"), str(tmp_path / "both"))), expected
    )
    mixed.load_adapter(str(tmp_path / "both"), "default")
    assert torch.equal(logits(mixed), expected)
    mixed.set_adapter("default")
    assert torch.equal(
        logits(PeftModel.from_pretrained(grown(tmp_path / "base"), str(tmp_path / "both"))), logits(mixed)
    )


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<turn> {% generation %}{{ message.content }}"
    " <end>{% endgeneration %}{% else %}<turn> {{ message.content }} <end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn> {% endif %}"
)


def talks() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"].strip()}],
            }
            for row in rows()
        ]
    )


def with_turns() -> Any:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    words.chat_template = TEMPLATE
    return words


def trainer_on(model: Any, words: Any, folder: Path, config: ReftConfig, **fields: Any) -> SFTTrainer:
    args = SFTConfig(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        lr_scheduler_type="constant",
        **fields,
    )
    data = talks()
    return SFTTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=words, peft_config=config
    )


def trained_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for name, value in load_file(folder / WEIGHTS_NAME).items() if "original_module" not in name}


BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}


@pytest.mark.parametrize("part", ["both", "tokens"])
def test_a_trainer_resumes_and_restores_the_best_model(part: str, tmp_path: Path) -> None:
    llama(False).save_pretrained(tmp_path / "base")

    def trainer(**fields: Any) -> SFTTrainer:
        torch.manual_seed(0)
        config = ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l2", **PARTS[part])
        return trainer_on(grown(tmp_path / "base"), with_turns(), tmp_path / "run", config, **fields)

    whole = trainer(**BEST)
    whole.train()
    best = Path(whole.state.best_model_checkpoint)
    assert torch.equal(logits(PeftModel.from_pretrained(grown(tmp_path / "base"), str(best))), logits(whole.model))
    last = trained_tensors(tmp_path / "run" / "checkpoint-4")
    trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    again = trained_tensors(tmp_path / "run" / "checkpoint-4")
    assert all(torch.equal(last[name], again[name]) for name in last)


def test_a_chat_template_with_new_tokens_grows_the_vocabulary(tmp_path: Path) -> None:
    """TRL then resizes the embeddings, trains the new tokens and saves the head in full."""
    llama(False).save_pretrained(tmp_path / "base")
    with_turns().save_pretrained(tmp_path / "template")

    def trainer(**fields: Any) -> SFTTrainer:
        torch.manual_seed(0)
        base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        config = ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l2")
        template = {"chat_template_path": str(tmp_path / "template")}
        return trainer_on(base, tokenizer(), tmp_path / "run", config, **template, **fields)

    whole = trainer(**BEST)
    assert whole.model.config.vocab_size > VOCABULARY
    assert whole.model.peft_config["default"].modules_to_save == ["lm_head"]
    whole.train()
    whole.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "final"))), logits(whole.model))
    last = trained_tensors(tmp_path / "run" / "checkpoint-4")
    trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    again = trained_tensors(tmp_path / "run" / "checkpoint-4")
    assert all(torch.equal(last[name], again[name]) for name in last)
