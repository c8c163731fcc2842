"""Pretrains the wide model; goes on where it was stopped, and keeps the loss on held-out text as it goes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

from tools.base_model import publish_once

from .corpus import corpus
from .model import END, answer_prompt, folder_of, make_model, make_tokenizer
from .primer import exercise

__all__ = ["held_out_blocks", "prepare", "pretrain"]

SEED = 20
LENGTH = 128
"""Tokens of a row."""
ROWS = 16
EXERCISE_ROWS = 11
"""Of the rows of a batch, how many are exercises, one after the other; of these the answers alone are learnt."""
COPY_ROWS, COPY_FROM = 5, 450
"""From this step on, so many of a batch's rows are random tokens that repeat themselves, in place of three rows of
exercises and two of text: copying, which most exercises ask for, is learnt from these within some hundred steps."""
IGNORED = -100
PEAK, WARM = 3e-3, 100
"""Learning rate, and steps until it is reached."""
KEEP_EVERY = 50


def prepare(folder: Path) -> None:
    """Write tokenizer and text, as tokens, into `folder/data`, once."""
    publish_once(folder / "data", _write_data)


def _write_data(target: Path) -> None:
    import numpy as np

    text = corpus()
    random = Random(SEED)
    exercises = [" ".join(exercise(random)) for _ in range(20_000)]
    tokenizer = make_tokenizer([*text.train, *exercises])
    tokenizer.save_pretrained(target)
    for name, parts in (("train", text.train), ("held_out", text.held_out)):
        order = list(parts)
        random.shuffle(order)
        ids = [token for row in tokenizer([part + END for part in order])["input_ids"] for token in row]
        np.save(target / f"{name}.npy", np.array(ids, dtype=np.uint16))
    facts = {"packages": text.versions, "paragraphs": {"train": len(text.train), "held_out": len(text.held_out)}}
    (target / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def held_out_blocks(folder: Path, blocks: int, length: int = LENGTH) -> Any:
    """The first blocks of the held-out text, long `[blocks, length]`."""
    import numpy as np
    import torch

    ids = np.load(folder / "data" / "held_out.npy")[: blocks * length]
    return torch.from_numpy(ids.astype("int64")).view(blocks, length)


def pretrain(minutes: float, total_steps: int, *, folder: Path | None = None) -> dict[str, Any]:
    """Train for so many minutes of this process, or until `total_steps`; the learning rate falls to a tenth by then.

    Returns:
        Steps, tokens, seconds, the loss on held-out text.
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
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    state = {"step": 0, "seconds": 0.0}
    if (folder / "training.pt").is_file():
        held = torch.load(folder / "training.pt", weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        state = held["state"]
    began = kept = time.process_time()
    while state["step"] < total_steps and time.process_time() - began < 60 * minutes:
        step = int(state["step"])
        rate = _rate(step, total_steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch, labels = _batch(ids, tokenizer, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state["step"] = step + 1
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


def _batch(ids: Any, tokenizer: Any, step: int) -> tuple[Any, Any]:
    """Rows of text from random places and rows of exercises, and their labels, each `[rows, length]`.

    The same for the same step.
    """
    import torch

    random = Random(SEED * 1_000_003 + step)
    rows, labels = [], []
    copied = COPY_ROWS if step >= COPY_FROM else 0
    for _ in range(copied):
        part = [random.randrange(4, len(tokenizer)) for _ in range(random.randint(LENGTH // 8, LENGTH // 3))]
        rows.append((part * (LENGTH // len(part) + 1))[:LENGTH])
        labels.append([IGNORED] * len(part) + rows[-1][len(part) :])
    exercises = EXERCISE_ROWS - (3 if copied else 0)
    for _ in range(ROWS - copied - exercises):
        start = random.randrange(len(ids) - LENGTH)
        rows.append(ids[start : start + LENGTH].astype("int64").tolist())
        labels.append(rows[-1])
    for _ in range(exercises):
        row, own = list[int](), list[int]()
        while len(row) < LENGTH:
            question, answer = exercise(random)
            asked, told = tokenizer([answer_prompt(question), answer + END])["input_ids"]
            row += asked + told
            own += [IGNORED] * len(asked) + told
        rows.append(row[:LENGTH])
        labels.append(own[:LENGTH])
    return torch.tensor(rows), torch.tensor(labels)


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
        "steps": int(state["step"]),
        "tokens": int(state["step"]) * ROWS * LENGTH,
        "seconds": round(float(state["seconds"])),
        "held-out loss": round(loss, 4),
        **json.loads((folder / "data" / "facts.json").read_text(encoding="utf-8")),
    }
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "facts.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told
