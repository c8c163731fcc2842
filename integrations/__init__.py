"""ReFT in other people's programs. Each name brings its own library in when it is first used, and not before."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import (
        ReftDataCollator,
        add_intervention_locations,
        convert_intervention_locations,
        show_positions,
    )
    from .evals import GenerationMetric, evaluate_generations
    from .trl import ReftGRPOTrainer, ReftRLOOTrainer, ReftSFTTrainer
    from .trl.objectives import RepsObjective, SplitObjective, use_objective

__all__ = [
    "GenerationMetric",
    "ReftDataCollator",
    "ReftGRPOTrainer",
    "ReftRLOOTrainer",
    "ReftSFTTrainer",
    "RepsObjective",
    "SplitObjective",
    "add_intervention_locations",
    "convert_intervention_locations",
    "evaluate_generations",
    "show_positions",
    "use_objective",
]

_MODULES = {
    "GenerationMetric": "evals",
    "ReftDataCollator": "data",
    "ReftGRPOTrainer": "trl",
    "ReftRLOOTrainer": "trl",
    "ReftSFTTrainer": "trl",
    "RepsObjective": "trl.objectives",
    "SplitObjective": "trl.objectives",
    "add_intervention_locations": "data",
    "convert_intervention_locations": "data",
    "evaluate_generations": "evals",
    "show_positions": "data",
    "use_objective": "trl.objectives",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
