"""`python -m benchmarks.prompt_cache`: answering behind a long system prompt, whole against from a prompt cache."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import environment, interleaved, table
from peft_reft import ReftConfig, prompt_cache
from tools.base_model import ensure_base_model

QUESTION = "What is the capital of France?"
RULE = "Answer every question in one short sentence, be polite, and say so when you do not know. "


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", help="id or folder; SmolLM2-135M-Instruct if left out")
    options.add_argument("--system-tokens", type=int, default=512)
    options.add_argument("--new-tokens", type=int, default=8)
    options.add_argument("--positions", nargs="+", default=["f7", "f7+l7"])
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    name = ensure_base_model(given.model)
    tokenizer = AutoTokenizer.from_pretrained(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head, ids = _prompt(tokenizer, given.system_tokens, device)
    candidates: dict[str, Any] = {}
    for positions in [None, *given.positions]:
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
        if positions is not None:
            config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False)
            model = get_peft_model(model, config)
        model.eval()
        cache = prompt_cache(model, head)
        label = positions or "base"
        candidates[f"{label}, whole"] = _answer(model, ids, None, given.new_tokens)
        candidates[f"{label}, cached"] = _answer(model, ids, cache, given.new_tokens)
        same = torch.equal(candidates[f"{label}, whole"](), candidates[f"{label}, cached"]())
        if not same:
            raise SystemExit(f"{label}: the answer from the cache is another one")
    seconds = interleaved(candidates, given.rounds)
    rows = []
    for label in ["base", *given.positions]:
        whole, cached = seconds[f"{label}, whole"], seconds[f"{label}, cached"]
        rows.append((label, whole / seconds["base, whole"], cached / seconds["base, cached"], cached / whole))
    print(environment())
    print(f"{head.shape[1]} cached tokens of {ids.shape[1]}, {given.new_tokens} generated, {given.rounds} rounds\n")
    print(table(("positions", "whole / base whole", "cached / base cached", "cached / whole"), rows))


def _prompt(tokenizer: Any, tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a system prompt of at least so many tokens, and of the whole prompt behind it."""
    rules = RULE * (1 + tokens // len(tokenizer(RULE)["input_ids"]))
    chat = [{"role": "system", "content": rules}, {"role": "user", "content": QUESTION}]
    told = {"return_tensors": "pt", "return_dict": True}
    head = tokenizer.apply_chat_template(chat[:1], **told)["input_ids"].to(device)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, **told)["input_ids"].to(device)
    if not torch.equal(ids[:, : head.shape[1]], head):
        raise SystemExit("the chat template does not start a prompt with its system prompt")
    return head, ids


def _answer(model: Any, ids: torch.Tensor, cache: Any, new: int) -> Any:
    def run() -> torch.Tensor:
        past = {} if cache is None else {"past_key_values": copy.deepcopy(cache)}
        mask = torch.ones_like(ids)
        answer: torch.Tensor = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, **past
        )
        return answer

    return run


if __name__ == "__main__":
    main()
