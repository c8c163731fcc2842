"""`python -m benchmarks.compiled_step`: a compiled training step with ReFT against one through the frozen base."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import environment, interleaved, table
from peft_reft import ReftConfig


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--rank", type=int, default=4)
    options.add_argument("--positions", nargs="+", default=["f7+l7", "all"])
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--backend", default="inductor")
    options.add_argument("--cpu-time", action="store_true", help="count computing time, for a busy machine")
    given = options.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.hidden,
        intermediate_size=given.hidden * 8 // 3,
        num_hidden_layers=given.layers,
        num_attention_heads=4,
        vocab_size=512,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(4, 512, (given.batch, given.tokens), device=device)
    labels = torch.where(torch.arange(given.tokens, device=device) < given.tokens // 2, -100, ids)
    candidates: dict[str, Callable[[], object]] = {}
    for label in ["base", *given.positions]:
        model: Any = LlamaForCausalLM(config).to(device).requires_grad_(False)
        if label != "base":
            model = get_peft_model(
                model, ReftConfig(task_type="CAUSAL_LM", r=given.rank, positions=label, init_weights=False)
            )
        model.train()
        compiled = torch.compile(model, backend=given.backend, fullgraph=True)
        candidates[label] = _step(model, model, ids, labels, through=label == "base")
        candidates[f"{label}, compiled"] = _step(compiled, model, ids, labels, through=label == "base")
    seconds = interleaved(candidates, given.rounds, cpu_time=given.cpu_time)
    print(environment())
    print(
        f"Llama of {given.layers} blocks of {given.hidden}, batch {given.batch} × {given.tokens}, loreft of rank "
        f"{given.rank}, backend {given.backend}, {given.rounds} rounds\n"
    )
    rows = [
        (
            label,
            seconds[label] / seconds["base"],
            seconds[f"{label}, compiled"] / seconds["base, compiled"],
            seconds[f"{label}, compiled"] / seconds[label],
        )
        for label in ["base", *given.positions]
    ]
    print(table(("", "eager / base eager", "compiled / base compiled", "compiled / eager"), rows))


def _step(forward: Any, model: Any, ids: torch.Tensor, labels: torch.Tensor, *, through: bool) -> Callable[[], object]:
    """Forward and backward; the base, all of it frozen, gives the gradient of its embedded input."""
    embed = model.get_input_embeddings()

    def run() -> object:
        if through:
            embedded = embed(ids).detach().requires_grad_()
            loss = forward(inputs_embeds=embedded, labels=labels).loss
        else:
            loss = forward(input_ids=ids, labels=labels).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss

    return run


if __name__ == "__main__":
    main()
