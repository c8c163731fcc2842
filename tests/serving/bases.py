"""Tiny random bases with heads as vLLM's kernels want them, adapters on them, and what PEFT generates with each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from peft_reft import MixedReftModel, ReftConfig

VOCABULARY = 128
LAYERS = 3
HIDDEN = 64
TEMPLATE = "{% for message in messages %}{{ 'w4 ' + message['content'] + ' w5 ' }}{% endfor %}"
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def saved_base(folder: Path, name: str = "llama", *, seed: int = 0, **fields: Any) -> Path:
    """A base model and its tokenizer in a folder: one word a token, `w7` is 7."""
    config = hf.AutoConfig.for_model(name, **{**COMMON, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def config(positions: str, **fields: Any) -> ReftConfig:
    """A random adapter that changes what a model says."""
    return ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False, **{"r": 2, **fields})


def loaded(base: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def saved_adapter(folder: Path, base: Path, positions: str, *, seed: int = 0, std: float = 1.0, **fields: Any) -> Path:
    """Save an adapter on a saved base."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = config(positions, **fields)
        if "tok(" in positions:
            made.bind_tokenizer(hf.AutoTokenizer.from_pretrained(base))
        model = get_peft_model(loaded(base), made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "reft_" in name:
                parameter.mul_(std)
    model.save_pretrained(folder)
    return folder


def saved_bundle(folder: Path, base: Path, positions: str, *, seed: int = 0) -> Path:
    """Save a LoRA and a ReFT as one bundle."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MixedReftModel.from_configs(loaded(base), {"default": lora, "edit": config(positions)})
    model.save_pretrained(folder)
    return folder


def greedy(base: Path, adapter: Path | None, prompt: Sequence[int], steps: int) -> list[int]:
    """What `PeftModel.generate` says after a prompt."""
    model = loaded(base)
    if adapter is not None:
        mixed = (adapter / "reft_index.json").is_file()
        model = (MixedReftModel if mixed else PeftModel).from_pretrained(model, adapter)
    return said(model.eval(), prompt, steps)


@torch.no_grad()
def said(model: Any, prompt: Sequence[int], steps: int) -> list[int]:
    """The greedy tokens after a prompt, none of which ends it."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt)])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def prompts(lengths: Sequence[int], *, seed: int = 7) -> list[list[int]]:
    """Random prompts of these lengths; all begin alike, so that prefix caching finds something to share."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, VOCABULARY, (max(lengths),), generator=generator).tolist()
    tails = torch.randint(6, VOCABULARY, (len(lengths),), generator=generator).tolist()
    return [[*ids[: length - 1], tail] for length, tail in zip(lengths, tails, strict=True)]
