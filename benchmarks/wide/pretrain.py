"""Pretrains the wide model; goes on where it was stopped, and keeps what it has learnt as it goes.

Copying comes first, from random tokens that repeat themselves: most exercises ask for it, and a model that cannot
copy learns nothing from them. Exercises and general text follow, in the shares of `PHASES`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tools.base_model import publish_once

from .corpus import corpus
from .model import END, answer_prompt, folder_of, make_model, make_tokenizer
from .primer import EXERCISES, exercise

__all__ = ["PHASES", "STEPS", "Phase", "held_out_blocks", "prepare", "pretrain"]

SEED = 20
STEPS = 4400
"""Of the whole pretraining, where nothing else is said."""
IGNORED = -100
"""Label of a token that is not learnt."""
PEAK, WARM = 2e-3, 50
"""Learning rate, and steps until it is reached."""
KEEP_EVERY, ASK_EVERY = 50, 250
"""Steps after which the state is kept, and after which exercises are asked."""
ASKED = 8
"""Questions of each exercise that are asked, of a generator that no batch is drawn from."""
TEXT_LENGTH = 128
"""Tokens of a block of held-out text."""


@dataclass(frozen=True)
class Phase:
    """What batches are made of.

    Attributes:
        begins: its first step; it lasts until the next one begins.
        length: tokens of a row.
        rows: kind of rows, of `KINDS` → how many of a batch are of it.
    """

    begins: int
    length: int
    rows: dict[str, int]


PHASES = (
    Phase(0, 32, {"copies": 24}),
    Phase(450, 64, {"copies": 4, "exercises": 16, "text": 4}),
    Phase(2400, 64, {"copies": 1, "exercises": 16, "text": 7}),
)


def prepare(folder: Path) -> None:
    """Write tokenizer and text, as tokens, into `folder/data`, once."""
    publish_once(folder / "data", _write_data)


def _write_data(target: Path) -> None:
    import numpy as np

    text = corpus()
    random = Random(SEED)
    exercises = [" ".join(exercise(random)) for _ in range(100_000)]
    tokenizer = make_tokenizer([*text.train, *exercises])
    tokenizer.save_pretrained(target)
    for name, parts in (("train", text.train), ("held_out", text.held_out)):
        order = list(parts)
        random.shuffle(order)
        ids = [token for row in tokenizer([part + END for part in order])["input_ids"] for token in row]
        np.save(target / f"{name}.npy", np.array(ids, dtype=np.uint16))
    facts = {"packages": text.versions, "paragraphs": {"train": len(text.train), "held_out": len(text.held_out)}}
    (target / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def held_out_blocks(folder: Path, blocks: int, length: int = TEXT_LENGTH) -> Any:
    """The first blocks of the held-out text, long `[blocks, length]`."""
    import numpy as np
    import torch

    ids = np.load(folder / "data" / "held_out.npy")[: blocks * length]
    return torch.from_numpy(ids.astype("int64")).view(blocks, length)


def pretrain(minutes: float, total_steps: int = STEPS, *, folder: Path | None = None) -> dict[str, Any]:
    """Train for so many minutes of this process, or until `total_steps`; the learning rate falls to a tenth by then.

    Returns:
        Steps, tokens, seconds, the loss on held-out text, the share of exercises that are answered exactly.
    """
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    folder = folder_of() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "data")
    ids = np.load(folder / "data" / "train.npy")
    model = make_model(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "exact": {}}
    if (folder / "training.pt").is_file():
        held = torch.load(folder / "training.pt", weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        state = held["state"]
    began = kept = time.process_time()
    while state["step"] < total_steps and time.process_time() - began < 60 * minutes:
        rate = _rate(state["step"], total_steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch, labels = _batch(ids, tokenizer, state["step"])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += batch.numel()
        if state["step"] % ASK_EVERY == 0:
            state["exact"][state["step"]] = _exact(model, tokenizer)
            print(json.dumps({"step": state["step"], "exact": state["exact"][state["step"]]}), flush=True)
        if state["step"] % KEEP_EVERY == 0:
            now = time.process_time()
            state["seconds"] += now - kept
            kept = now
            print(f"step {state['step']} of {total_steps}, loss {loss.item():.3f}, rate {rate:.1e}", flush=True)
            _keep(folder, model, optimiser, state)
    state["seconds"] += time.process_time() - kept
    return _finish(folder, model, tokenizer, optimiser, state)


def _rate(step: int, total: int) -> float:
    """A linear rise, then a linear fall to a tenth."""
    return PEAK * min(1.0, (step + 1) / WARM) * (1 - 0.9 * min(1.0, step / max(1, total)))


@dataclass(frozen=True)
class _Source:
    """What rows are drawn from: the tokens of the training text, the tokenizer, the step's own generator."""

    ids: Any
    tokenizer: Any
    random: Random


_Row = tuple[list[int], list[int]]
"""Tokens, and labels of the same number."""


def _copies(source: _Source, length: int) -> _Row:
    """Random tokens that repeat themselves; all but their first round is learnt."""
    random = source.random
    part = [random.randrange(4, len(source.tokenizer)) for _ in range(random.randint(3, length // 3))]
    row = (part * (length // len(part) + 1))[:length]
    return row, [IGNORED] * len(part) + row[len(part) :]


def _exercises(source: _Source, length: int) -> _Row:
    """Exercises, one after the other, of which the answers alone are learnt."""
    row, labels = list[int](), list[int]()
    while len(row) < length:
        asked, told = _tokens(source.tokenizer, *exercise(source.random))
        row += asked + told
        labels += [IGNORED] * len(asked) + told
    return row[:length], labels[:length]


def _text(source: _Source, length: int) -> _Row:
    """General text from a random place."""
    start = source.random.randrange(len(source.ids) - length)
    row = source.ids[start : start + length].astype("int64").tolist()
    return row, row


KINDS: dict[str, Callable[[_Source, int], _Row]] = {"copies": _copies, "exercises": _exercises, "text": _text}
"""Name → what draws a row of a given length."""


def _batch(ids: Any, tokenizer: Any, step: int) -> tuple[Any, Any]:
    """Rows of the step's phase and their labels, each `[rows, length]`; the same for the same step."""
    import torch

    phase = max((phase for phase in PHASES if phase.begins <= step), key=lambda phase: phase.begins)
    source = _Source(ids, tokenizer, Random(SEED * 1_000_003 + step))
    drawn = [KINDS[kind](source, phase.length) for kind, rows in phase.rows.items() for _ in range(rows)]
    rows, labels = zip(*drawn, strict=True)
    return torch.tensor(rows), torch.tensor(labels)


def _tokens(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    asked, told = tokenizer([answer_prompt(question), answer + END])["input_ids"]
    return asked, told


def _exact(model: Any, tokenizer: Any) -> dict[str, float]:
    """Exercise → share of its questions that greedy decoding answers exactly, to the last token."""
    import torch

    told: dict[str, float] = {}
    for name, draw in EXERCISES.items():
        random = Random(f"asked {name}")
        right = 0
        for _ in range(ASKED):
            asked, answer = _tokens(tokenizer, *draw(random))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
            right += logits.argmax(-1).tolist() == answer  # given the answer so far, which greedy decoding has said
        told[name] = right / ASKED
    return told


def _keep(folder: Path, model: Any, optimiser: Any, state: dict[str, Any]) -> None:
    import torch

    held = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "state": state}
    torch.save(held, folder / "training.part")
    (folder / "training.part").replace(folder / "training.pt")


def _finish(folder: Path, model: Any, tokenizer: Any, optimiser: Any, state: dict[str, Any]) -> dict[str, Any]:
    import torch

    _keep(folder, model, optimiser, state)
    model.eval()
    blocks = held_out_blocks(folder, 64)
    with torch.no_grad():
        loss = sum(model(input_ids=part, labels=part).loss.item() for part in blocks.split(8)) / 8
    told = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": state["step"],
        "tokens": state["tokens"],
        "seconds": round(state["seconds"]),
        "held-out loss": round(loss, 4),
        "exercises answered exactly": {"last": _exact(model, tokenizer), "by step": state["exact"]},
        **json.loads((folder / "data" / "facts.json").read_text(encoding="utf-8")),
    }
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "facts.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told
