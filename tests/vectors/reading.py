"""The tiny base of the vectors, and what happens at the places that are edited while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["ROOT", "expected", "folders", "observe", "tiny_base"]

ROOT = Path(__file__).parents[1] / "data" / "vectors"


def folders(part: str) -> list[str]:
    return sorted(path.name for path in (ROOT / part).iterdir())


def expected(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return content


def tiny_base() -> LlamaForCausalLM:
    config = json.loads((ROOT / "base" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**config)).eval()


def observe(base: nn.Module, case: Mapping[str, Any], load: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    """The hidden states after the edit at every place of a case, where those before it are the case's own.

    A hook before the adapter is loaded puts the given states in place, one after it takes what the adapter made.
    """
    given, seen = torch.tensor(case["hidden"]), {}

    def put(value: Any) -> Any:
        return given.clone() if isinstance(value, Tensor) else (given.clone(), *value[1:])

    def first(args: Any, kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    def hook(place: str, *, taking: bool) -> None:
        path, on = place.split(" ")
        module = base.get_submodule(path)
        if on == "output" and taking:
            module.register_forward_hook(
                lambda m, a, out: seen.update({place: out if isinstance(out, Tensor) else out[0]})
            )
        elif on == "output":
            module.register_forward_hook(lambda m, a, out: put(out))
        elif taking:
            module.register_forward_pre_hook(lambda m, a, kw: seen.update({place: first(a, kw)}), with_kwargs=True)
        else:
            module.register_forward_pre_hook(
                lambda m, a, kw: ((given.clone(), *a[1:]), kw) if a else (a, {**kw, next(iter(kw)): given.clone()}),
                with_kwargs=True,
            )

    for place in case["edited"]:
        hook(place, taking=False)
    model = load(base)
    for place in case["edited"]:
        hook(place, taking=True)
    with torch.no_grad():
        model(**{name: torch.tensor(values) for name, values in case["batch"].items()})
    return {place: value.double() for place, value in seen.items()}
