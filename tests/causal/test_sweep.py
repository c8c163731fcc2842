"""A sweep over layers and positions: what it measures, keeps, resumes and draws."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    CausalModel,
    Column,
    PadRows,
    Site,
    Sweep,
    every_pair,
    interchange_accuracy,
    sweep,
    wilson_interval,
)
from peft_reft.causal.site import Position
from peft_reft.hub_format.errors import CausalModelError

from .networks import llama
from .prompts import answers, prompts, task

LAYERS, POSITIONS = (0, 2), (1, -1)


def cell(correct: int) -> Accuracy:
    return Accuracy(correct, 10, wilson_interval(correct, 10), 0.1, 0.2)


class Counted:
    def __init__(self, stop_after: int = 99) -> None:
        self.calls: list[tuple[int, Position]] = []
        self.stop_after = stop_after

    def __call__(self, layer: int, position: Position) -> Accuracy:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((layer, position))
        return cell(layer + (5 if position == -1 else 0))


def swept(measure: Any, **further: Any) -> Any:
    return sweep(measure, layers=LAYERS, positions=POSITIONS, progress=False, **further)


def test_where_a_transformer_holds_its_answer() -> None:
    """After the last block the last token holds all of the answer, and the token before it nothing."""
    model, tokens = llama(), range(3, 15)

    def encode(rows: Sequence[Any]) -> Tensor:
        return torch.tensor([[1, row["T"], 2] for row in rows])

    def decode(output: Any) -> Tensor:
        answer: Tensor = output.logits[:, -1].argmax(-1)
        return answer

    with torch.no_grad():
        table = dict(zip(tokens, decode(model(encode([{"T": token} for token in tokens]))).tolist(), strict=True))
    answers = CausalModel({"A": lambda T: T, "V": lambda A: table[A]}, inputs={"T": tokens})
    pairs = list(every_pair(answers, ["A"]))

    def measure(layer: int, position: Position) -> Accuracy:
        site = Site(layer=layer, position=position)
        return interchange_accuracy(model, answers, {"A": site}, pairs, encode=encode, decode=decode)

    found = swept(measure)
    assert found.cells[2, "-1"].value == 1.0
    assert found.cells[2, "1"].value == found.cells[2, "1"].unchanged < 1.0


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    path, first, second = tmp_path / "sweep.json", Counted(stop_after=3), Counted()
    with pytest.raises(KeyboardInterrupt):
        swept(first, path=path, settings={"seed": 1})
    found = swept(second, path=path, settings={"seed": 1})
    assert second.calls == [(2, -1)]
    assert found == swept(Counted())
    assert found.best == (2, "-1")
    assert len(json.loads(path.read_text())["cells"]) == 4
    assert Sweep.load(path) == found
    with pytest.raises(CausalModelError, match=r"no other\.json"):
        Sweep.load(tmp_path / "other.json")


def test_a_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    swept(Counted(), path=path, settings={"seed": 1})
    with pytest.raises(CausalModelError, match="settings"):
        swept(Counted(), path=path, settings={"seed": 2})
    for text in ("no json", "[]", '{"cells": [{}], "settings": {}}'):
        path.write_text(text)
        with pytest.raises(CausalModelError, match="holds no sweep"):
            swept(Counted(), path=path, settings={"seed": 1})
        assert path.read_text() == text
    with pytest.raises(CausalModelError, match="without settings"):
        swept(Counted(), path=path)


def killed(layer: int, position: Position) -> Accuracy:
    if (layer, position) == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return cell(layer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sweep_whose_process_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path, rest = tmp_path / "sweep.json", Counted()
    child = multiprocessing.get_context("fork").Process(
        target=swept, args=(killed,), kwargs={"path": path, "settings": {"seed": 1}}
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = swept(rest, path=path, settings={"seed": 1})
    assert rest.calls == [(2, 1), (2, -1)]
    assert [found.cells[0, "1"], found.cells[0, "-1"]] == [cell(0), cell(0)]


def test_a_search_at_every_layer_and_position_of_tokenised_prompts(tmp_path: Path) -> None:
    """The token T is found at its own place before the first block, and nowhere at the token after it."""
    network = answers()
    causal_model = task(network)
    training, test = (prompts(causal_model, ["A"], count, seed) for count, seed in ((120, 1), (60, 2)))
    calls = []

    def measure(layer: int, position: Position) -> Accuracy:
        calls.append((layer, position))
        site = Site(layer=layer, component="block_input", position=position)
        search = AlignmentSearch(
            network,
            causal_model,
            site,
            {"A": 14},
            encode=PadRows(0, padding_side="left"),
            loss=network.loss(),
            seed=0,
            example=test[0]["base"],
        )
        search.fit(training, steps=20, learning_rate=0.1, batch_size=40, seed=0)
        return search.accuracy(test, decode=network.decode)

    further = {"layers": (0, 2), "positions": (Column("at"), "p[-2:-1]"), "progress": False}
    path = tmp_path / "sweep.json"
    found = sweep(measure, **further, path=path, settings={"prompts": 120, "seed": 1})
    own, after = (found.cells[0, word] for word in found.positions)
    assert own.value > own.chance + 0.2
    assert after.value <= after.chance + 0.1
    assert found.best == (0, found.positions[0])
    assert sweep(measure, **further, path=path, settings={"prompts": 120, "seed": 1}) == found
    assert len(calls) == 4


@pytest.mark.parametrize("wrong", [{"layers": []}, {"layers": [1, 1]}, {"positions": []}, {"positions": [1, 1]}])
def test_nothing_to_sweep_or_twice_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CausalModelError, match="each once"):
        sweep(Counted(), **{"layers": [0], "positions": [1], "progress": False, **wrong})


def test_the_heat_map_shows_the_accuracies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = swept(Counted())
    ax = found.heat_map(labels=["the", "cat"])
    assert ax.images[0].get_array().tolist() == [[0.0, 0.5], [0.2, 0.7]]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["the", "cat"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "2"]
    assert [text.get_text() for text in ax.texts] == ["0%", "50%", "20%", "70%"]
    ax.figure.savefig(tmp_path / "map.png")
    with pytest.raises(CausalModelError, match="2 positions"):
        found.heat_map(labels=["the"])


def test_a_notebook_shows_the_cells_that_are_there() -> None:
    found = swept(Counted())
    page = found._repr_html_()
    assert re.findall(r"<td[^>]*>(.*?)</td>", page) == ["20%", "70%", "0%", "50%"]  # layer 0 below
    assert re.findall(r"<th>(.*?)</th>", page) == ["", "1", "-1", "layer 2", "layer 0"]
    part = Sweep((0, 2), ("1", "-1"), {(0, "1"): cell(3)})
    assert re.findall(r"<td[^>]*>(.*?)</td>", part._repr_html_()) == ["", "", "30%", ""]


def test_the_bar_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    swept(Counted())
    assert capsys.readouterr().err == ""
    sweep(Counted(), layers=LAYERS, positions=POSITIONS, progress=True)
    assert "4/4" in capsys.readouterr().err
