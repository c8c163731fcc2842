"""`python -m benchmarks.many_adapters`: a batch with another adapter for every row, against one adapter for all."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import environment, interleaved, table
from peft_reft import ReftConfig
from tools.base_model import ensure_base_model

__all__ = ["main", "pair"]

TEXT = "Representation finetuning edits the hidden states of a frozen language model at chosen layers and tokens. "
ADAPTERS, ROWS, TOKENS, POSITIONS = 512, 32, 64, "f7+l7"
Call = Callable[[], object]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", help="id or folder; SmolLM2-135M-Instruct if left out")
    options.add_argument("--adapters", type=int, default=ADAPTERS)
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--prompt-tokens", type=int, default=TOKENS)
    options.add_argument("--new-tokens", type=int, default=8)
    options.add_argument("--positions", default=POSITIONS)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--cpu-time", action="store_true", help="count computing time, for a busy machine")
    given = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = given.adapters, given.rows, given.prompt_tokens, given.positions
    model, batch, rows = _made(given.model, device, *sizes)
    print(environment())
    print(
        f"{given.rows} rows of {given.prompt_tokens} tokens, {len(set(rows))} of {given.adapters} adapters, "
        f"{given.positions}, {given.rounds} rounds, {'computing' if given.cpu_time else 'wall'} time\n",
        flush=True,
    )
    for label, new in (("prefill", 0), (f"prefill and {given.new_tokens} tokens", given.new_tokens)):
        candidates = {"one": _call(model, batch, new, None), "many": _call(model, batch, new, rows)}
        seconds = interleaved(candidates, given.rounds, cpu_time=given.cpu_time)
        print(table(("", "one per row / one adapter"), [(label, seconds["many"] / seconds["one"])]), flush=True)


def pair(device: str) -> tuple[Call, Call]:
    """(a prefill with one adapter, the same with another for every row), on one model, in the options' usual sizes."""
    model, batch, rows = _made(None, device, ADAPTERS, ROWS, TOKENS, POSITIONS)
    return _call(model, batch, 0, None), _call(model, batch, 0, rows)


def _made(
    name: str | None, device: str, adapters: int, rows: int, tokens: int, positions: str
) -> tuple[Any, torch.Tensor, list[str]]:
    """A model with so many adapters, a batch of ids, and an adapter's name for every row."""
    found = ensure_base_model(name)
    base = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32).to(device)
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False)
    model: Any = get_peft_model(base, config)
    names = ["default", *(f"a{number}" for number in range(1, adapters))]
    for other in names[1:]:
        model.add_adapter(other, copy.deepcopy(config))
    model.eval()
    ids = AutoTokenizer.from_pretrained(found)(TEXT * tokens, return_tensors="pt")["input_ids"]
    return model, ids[:, :tokens].repeat(rows, 1).to(device), [names[n * adapters // rows] for n in range(rows)]


def _call(model: Any, batch: torch.Tensor, new: int, chosen: list[str] | None) -> Call:
    told = {} if chosen is None else {"adapter_names": chosen}

    @torch.no_grad()
    def run() -> object:
        if not new:
            return model(input_ids=batch, **told)
        return model.generate(input_ids=batch, max_new_tokens=new, min_new_tokens=new, do_sample=False, **told)

    return run


if __name__ == "__main__":
    main()
