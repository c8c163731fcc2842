"""Bases and adapters that the tests of this folder share, saved once, and what PEFT generates with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import bases

STEPS = 8
LENGTHS = (9, 40, 2, 70, 5, 1, 33, 64)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("f3+l2", {}),
    "untied": ("f2+l3", {"share_weights": False, "r": 3}),
    "wide": ("l1", {"r": 4, "intervention": "noreft"}),
    "all": ("all", {"std": 0.3}),
    "generated": ("g[1:4]", {}),
    "activated": ("l4", {"act_fn": "gelu"}),
    "bias": ("prompt-f1", {"intervention": "bias"}),
    "one_layer": ("p[1:4]", {"layers_to_transform": [1], "intervention": "direft"}),
    "groups": (
        "l1",
        {
            "interventions": [
                {"positions": "f2+l1", "layers_to_transform": [0, 2]},
                {"positions": "l2", "intervention": "red", "layers_to_transform": [0]},
            ]
        },
    ),
    "special": ("tok(w2)", {}),
}
"""Name → positions and other fields; `groups` has two units that edit one token of one block."""


@dataclass(frozen=True)
class World:
    """A base, adapters on it, and what PEFT says."""

    base: Path
    adapters: dict[str, Path]
    says: Callable[[str | None, tuple[int, ...]], list[int]]

    def expected(self, asked: Sequence[tuple[str | None, Sequence[int]]]) -> list[list[int]]:
        """The greedy tokens of every request alone, by `PeftModel.generate`."""
        return [self.says(name, tuple(prompt)) for name, prompt in asked]

    def every(self) -> list[tuple[str | None, list[int]]]:
        """Every adapter and the base, each with every prompt, so that a batch holds many of them."""
        given = bases.prompts(LENGTHS)
        given[1][5] = given[3][50] = 2  # what tok(w2) edits
        return [(name, prompt) for prompt in given for name in (None, *self.adapters)]


def world(folder: Path, name: str, kinds: Sequence[str], **fields: Any) -> World:
    """A saved base of an architecture, and adapters of some kinds."""
    base = bases.saved_base(folder / "base", name, **fields)
    adapters = {
        kind: bases.saved_adapter(folder / kind, base, KINDS[kind][0], seed=number, **KINDS[kind][1])
        for number, kind in enumerate(kinds)
    }

    @functools.cache
    def says(adapter: str | None, prompt: tuple[int, ...]) -> list[int]:
        return bases.greedy(base, None if adapter is None else adapters[adapter], prompt, STEPS)

    return World(base, adapters, says)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("llama"), "llama", tuple(KINDS))
