"""The adapters of a sequence: one trained on, or a new one for each skill, stacked or switched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.study.methods import Method, trained

__all__ = ["Sequence"]

FIRST = "default"


class Sequence:
    """Adds adapters as skills come, and chooses which edit.

    Args:
        model: with one fresh adapter of the method, or plain where all weights are trained.
        method: of the adapters.
        regime: `continue`, `stacked` or `switched`.
        orthogonal: whether the R of each new adapter is kept orthogonal to those of the former ones.
    """

    def __init__(self, model: Any, method: Method, regime: str, orthogonal: bool) -> None:
        self.model = model
        self.method = method
        self.regime = regime
        self.orthogonal = orthogonal
        self.names = [FIRST]

    def begin(self, step: int, seed: int) -> list[nn.Parameter]:
        """What learns skill number `step`; from the second on of a new adapter, where the regime says so."""
        if step and self.regime != "continue" and self.method.config is not None:
            torch.manual_seed(seed)
            config = self.method.config(self.model.get_base_model().config)
            if self.orthogonal:
                config.orthogonal_to = list(self.names)
            name = f"skill{step}"
            self.model.add_adapter(name, config)
            self.names.append(name)
        if self.regime == "continue":
            return trained(self.model)
        newest = self.names[-1]
        self._choose(self.names if self.regime == "stacked" else [newest])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(f".{newest}." in name or name.endswith(f".{newest}"))
        return trained(self.model)

    def ask(self, skill: int, learnt: int) -> None:
        """Choose the adapters for a question of a skill, when so many have been learnt.

        Switched, a skill that has an adapter is asked with its own, as a router that never errs would; one that has
        none yet, with the newest.
        """
        if self.regime == "switched":
            self._choose([self.names[min(skill, learnt)]])

    def _choose(self, names: list[str]) -> None:
        if hasattr(self.model.base_model, "set_adapter") and len(names) > 1:
            self.model.base_model.set_adapter(names)
        else:
            self.model.set_adapter(names[0])
