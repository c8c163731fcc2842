"""`python -m benchmarks.many_adapters`: a batch with another adapter for every row, against one adapter for all."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import environment, interleaved, table
from peft_reft import ReftConfig
from tools.base_model import ensure_base_model

TEXT = "Representation finetuning edits the hidden states of a frozen language model at chosen layers and tokens. "


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", help="id or folder; SmolLM2-135M-Instruct if left out")
    options.add_argument("--adapters", type=int, default=512)
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--prompt-tokens", type=int, default=64)
    options.add_argument("--new-tokens", type=int, default=8)
    options.add_argument("--positions", default="f7+l7")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--cpu-time", action="store_true", help="count computing time, for a busy machine")
    given = options.parse_args()
    name = ensure_base_model(given.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
    config = ReftConfig(task_type="CAUSAL_LM", positions=given.positions, init_weights=False)
    model: Any = get_peft_model(base, config)
    names = ["default", *(f"a{number}" for number in range(1, given.adapters))]
    for other in names[1:]:
        model.add_adapter(other, copy.deepcopy(config))
    model.eval()
    ids = AutoTokenizer.from_pretrained(name)(TEXT * given.prompt_tokens, return_tensors="pt")["input_ids"]
    batch = ids[:, : given.prompt_tokens].repeat(given.rows, 1).to(device)
    rows = [names[number * len(names) // given.rows] for number in range(given.rows)]

    def call(new: int, chosen: list[str] | None) -> Any:
        told = {} if chosen is None else {"adapter_names": chosen}

        @torch.no_grad()
        def run() -> object:
            if not new:
                return model(input_ids=batch, **told)
            return model.generate(input_ids=batch, max_new_tokens=new, min_new_tokens=new, do_sample=False, **told)

        return run

    print(environment())
    print(
        f"{given.rows} rows of {given.prompt_tokens} tokens, {len(set(rows))} of {len(names)} adapters, "
        f"{given.positions}, {given.rounds} rounds, {'computing' if given.cpu_time else 'wall'} time\n",
        flush=True,
    )
    for label, new in (("prefill", 0), (f"prefill and {given.new_tokens} tokens", given.new_tokens)):
        candidates = {"one": call(new, None), "many": call(new, rows)}
        seconds = interleaved(candidates, given.rounds, cpu_time=given.cpu_time)
        print(table(("", "one per row / one adapter"), [(label, seconds["many"] / seconds["one"])]), flush=True)


if __name__ == "__main__":
    main()
