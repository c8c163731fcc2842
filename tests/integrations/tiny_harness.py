"""A tiny model, tasks and an adapter in folders, and what a plain loop over single requests says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from .tiny_sft import base_model, reft, tokenizer

CHOICES = ["red", "green", "blue", "white"]
DOCS = [
    {"question": "what has the colour of the sky ?", "answer": 2},
    {"question": "what is the leaf ?", "answer": 1},
    {"question": "the snow", "answer": 3},
    {"question": "name the colour of one apple please", "answer": 0},
    {"question": "tell me what the grass is ?", "answer": 1},
    {"question": "rose is", "answer": 0},
    {"question": "the colour of milk", "answer": 3},
    {"question": "and the sea ?", "answer": 2},
]
"""Contexts of 2 to 7 tokens, answers of 1."""
LONGER = ["a red apple", "a green leaf and a rose", "the sea", "blue", "red apple"]
"""Continuations of 1 to 6 tokens."""


def saved_base(folder: Path) -> Path:
    """The tiny Llama and its tokenizer, as a user has them."""
    base_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_tasks(folder: Path) -> Path:
    """Three tasks of the harness on data of one's own: multiple choice, generation, whole texts."""
    folder.mkdir(exist_ok=True)
    rows = [{**doc, "choices": CHOICES, "text": f"{doc['question']} {CHOICES[doc['answer']]}"} for doc in DOCS]
    data = folder / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    choice = (
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\ndoc_to_choice: choices\n"
    )
    until = (
        "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{choices[answer]}}'\n"
        "generation_kwargs:\n  until: []\n  max_gen_toks: 3\nmetric_list:\n  - metric: exact_match\n"
    )
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    rolling += "metric_list:\n  - metric: word_perplexity\n"
    for name, body in (("colours", choice), ("colours_said", until), ("colours_read", rolling)):
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{body}", "utf-8")
    return folder


def encoded(text: str) -> list[int]:
    ids: list[int] = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def trained(**fields: Any) -> PeftModel:
    """An adapter that answers `DOCS`, each example alone with its prompt masked out of the labels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(base_model(), reft(**{"r": 4, "init_weights": None, **fields}))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-2)
    for _ in range(25):
        for doc in DOCS:
            prompt, answer = encoded(doc["question"]), encoded(CHOICES[doc["answer"]])
            ids = torch.tensor([prompt + answer])
            loss = model(input_ids=ids, labels=torch.tensor([[-100] * len(prompt) + answer])).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@contextmanager
def hooked(base: nn.Module, adapter: Mapping[str, Tensor], edited: Sequence[int]) -> Iterator[None]:
    """Plain hooks: h + Rᵀ(Wh + b − Rh) at some tokens of every block, from the tensors that were saved."""
    handles = []
    for number, block in enumerate(base.model.layers):
        (raw, weight, bias) = (
            next(value for name, value in adapter.items() if f".layers.{number}." in name and name.endswith(part))
            for part in (".rotation", ".weight", ".bias")
        )
        rows, factor = torch.linalg.qr(raw.mT)
        rotation = (rows * factor.diagonal().sign()).mT

        def edit(_: nn.Module, __: Any, output: Any, rotation: Any = rotation, w: Any = weight, b: Any = bias) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            for place in edited:
                h = hidden[0, place]
                hidden[0, place] = h + rotation.mT @ (w @ h + b - rotation @ h)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(block.register_forward_hook(edit))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Slow:
    """Scores and generates one request at a time: the bare base with plain hooks, no padding, no cache.

    Args:
        base: without adapters.
        adapter: its tensors, by their names in the file.
        first, last: how many tokens of the prompt's head and tail are edited.
    """

    def __init__(self, base: nn.Module, adapter: Mapping[str, Tensor], *, first: int, last: int) -> None:
        self.base = base.eval()
        self.adapter = adapter
        self.first, self.last = first, last

    def _edited(self, prompt: int) -> list[int]:
        head = range(min(self.first, prompt))
        return sorted({*head, *range(max(prompt - self.last, 0), prompt)})

    @torch.no_grad()
    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        with hooked(self.base, self.adapter, self._edited(len(context))):
            logits = self.base(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        wanted = torch.tensor(continuation)
        chosen = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted]
        return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())

    @torch.no_grad()
    def generate(self, context: Sequence[int], steps: int) -> list[int]:
        ids = list(context)
        for _ in range(steps):
            with hooked(self.base, self.adapter, self._edited(len(context))):
                ids.append(int(self.base(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(context) :]
