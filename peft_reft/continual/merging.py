"""`merge_skills`: one adapter that is the weighted sum of several, its weights chosen on validation data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor

from peft_reft.adapters.scaling import scale_adapter
from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.runtime import state_of

from .former import evaluating

__all__ = ["MergedSkills", "merge_skills"]

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
Batch: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class MergedSkills:
    """What was chosen.

    Attributes:
        weights: adapter → its weight in the sum.
        losses: skill → loss of its validation batches with the sum.
        alone: skill → the same with the adapter of that name alone, where there is one.
        tried: how many weightings were measured.
    """

    weights: Mapping[str, float]
    losses: Mapping[str, float]
    alone: Mapping[str, float]
    tried: int


def merge_skills(
    model: PeftModel,
    validation: Mapping[str, Sequence[Batch]],
    name: str,
    *,
    adapters: Sequence[str] | None = None,
    grid: Sequence[float] = GRID,
    rounds: int = 2,
) -> MergedSkills:
    """Add the adapter `name`, the weighted sum of others that loses least over the skills' validation data.

    Weights are found coordinate by coordinate: from all at 1/n on, each in turn takes the value of the grid with the
    lowest mean of the skills' losses, `rounds` times over. While they are tried the adapters are active together with
    factors, which is the same edit; the sum itself is made once, exactly (`add_weighted_adapter`).

    Args:
        model: with the adapters, ReFTs all. The weight adapters of a `MixedReftModel` stay as they are, active or not.
        validation: skill → batches with labels; a skill that has the name of an adapter is also measured with it
            alone.
        name: of the new adapter, which becomes the active ReFT.
        adapters: names; None takes the skills' names.
        grid: weights to try, 0 or more.
        rounds: through all adapters.

    Returns:
        The weights, and what the sum loses.

    Raises:
        ConfigError: no data, a name or a number that is not allowed.
        MergeError: a kind whose edit times a factor is no edit. Nothing is measured then.
    """
    _check_kinds(validation, adapters, grid)
    names = list(validation) if adapters is None else list(adapters)
    _check(model, validation, names, grid, rounds)
    model.add_weighted_adapter(names, [0.5] * len(names), name)  # what has no sum is refused before anything is tried
    model.delete_adapter(name)
    search = _Search(model, validation, names)
    with _together(model, names), evaluating(model):
        weights = search.best(grid, rounds)
        losses = search.losses(weights)
    alone = {}
    with evaluating(model):
        for skill in validation:
            if skill in names:
                _choose(model, [skill])
                alone[skill] = _loss(model, validation[skill])
    model.add_weighted_adapter(names, list(weights), name)
    _choose(model, [name])
    return MergedSkills(dict(zip(names, weights, strict=True)), losses, alone, len(search.known))


class _Search:
    """Weightings and what they lose, each measured once."""

    def __init__(self, model: PeftModel, validation: Mapping[str, Sequence[Batch]], names: Sequence[str]) -> None:
        self.model = model
        self.validation = validation
        self.names = names
        self.known: dict[tuple[float, ...], dict[str, float]] = {}

    def losses(self, weights: tuple[float, ...]) -> dict[str, float]:
        if weights not in self.known:
            for name, weight in zip(self.names, weights, strict=True):
                scale_adapter(self.model, name, weight)
            self.known[weights] = {skill: _loss(self.model, batches) for skill, batches in self.validation.items()}
        return self.known[weights]

    def best(self, grid: Sequence[float], rounds: int) -> tuple[float, ...]:
        weights = (1 / len(self.names),) * len(self.names)
        for _ in range(rounds):
            for place in range(len(self.names)):
                tried = [weights, *((*weights[:place], value, *weights[place + 1 :]) for value in grid)]
                weights = min(tried, key=lambda one: _mean(self.losses(one)))
        return weights


def _edits(model: PeftModel) -> Any:
    """The tuner of the model's ReFTs; a mixed model has another one for weight adapters, which are left alone."""
    return model.base_model if getattr(model, "edits", None) is None else model.edits


def _choose(model: PeftModel, names: Sequence[str]) -> None:
    """Make these ReFTs the active ones, and no other ReFT."""
    if _edits(model) is model.base_model and len(names) == 1:
        model.set_adapter(names[0])
    else:
        _edits(model).set_adapter(list(names))


@contextmanager
def _together(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """The adapters active together; their factors and the active ones as they were, afterwards."""
    state: Any = state_of(model.get_base_model())
    before = list(_edits(model).active_adapters)
    factors = {name: {path: layer.scaling.get(name) for path, layer in state.layers.items()} for name in names}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _choose(model, names)
    try:
        yield
    finally:
        for name in names:
            for path, layer in state.layers.items():
                if (factor := factors[name][path]) is not None:
                    layer.scaling[name] = factor
        state.changed()
        _choose(model, before)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def _loss(model: PeftModel, batches: Sequence[Batch]) -> float:
    """Mean loss per supervised token."""
    total, tokens = 0.0, 0
    for batch in batches:
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch).loss) * count
        tokens += count
    return total / tokens


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _check_kinds(validation: Any, adapters: Any, grid: Any) -> None:
    """Refuse what cannot be gone over several times, or holds other things than it should."""
    batches = validation.values() if isinstance(validation, Mapping) else [validation]
    if any(not isinstance(given, (list, tuple)) or not all(map(_is_batch, given)) for given in batches):
        raise ConfigError(
            f"validation is {shown(validation)}",
            value=type(validation).__name__,
            rule="it maps each skill to a list of batches, dicts of tensors [batch, seq] with input_ids and labels",
        )
    if adapters is not None and not (
        isinstance(adapters, (list, tuple)) and all(isinstance(n, str) for n in adapters)
    ):
        raise ConfigError(f"adapters={shown(adapters)}", value=adapters, rule="a list of names, or None")
    if not isinstance(grid, (list, tuple)) or not all(type(one) in (int, float) for one in grid):
        raise ConfigError(f"grid={shown(grid)}", value=grid, rule="a list of numbers", fix=f"e.g. {GRID}")


def _is_batch(given: object) -> bool:
    if not isinstance(given, Mapping) or ("input_ids" not in given and "inputs_embeds" not in given):
        return False
    labels = given.get("labels")
    return labels is None or (isinstance(labels, Tensor) and labels.dim() == 2)


def _check(
    model: PeftModel,
    validation: Mapping[str, Sequence[Batch]],
    names: Sequence[str],
    grid: Sequence[float],
    rounds: int,
) -> None:
    if not isinstance(model, PeftModel) or state_of(model.get_base_model()) is None:
        raise ConfigError("model has no ReFT adapters", value=type(model).__name__, fix="pass a PeftModel with some")
    if not validation or not all(validation.values()):
        raise ConfigError(
            "validation has no batches",
            value=list(validation),
            rule="it maps each skill to batches with input_ids and labels",
        )
    for skill, batches in validation.items():
        if any(batch.get("labels") is None or not bool((batch["labels"][:, 1:] != -100).any()) for batch in batches):
            raise ConfigError(
                f"a batch of {skill!r} supervises nothing", value=skill, rule="its labels say the answer"
            )
    if len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"adapters={names!r}", value=names, rule="two or more names, none twice")
    for name in names:
        if name not in model.peft_config:
            known = ", ".join(model.peft_config)
            raise ConfigError(
                f"there is no adapter {name!r}",
                value=name,
                rule=f"known are: {known}",
                fix="say adapters=[...] where skills have other names than adapters",
            )
        if not isinstance(model.peft_config[name], ReftConfig):
            raise ConfigError(
                f"adapter {name!r} is a {type(model.peft_config[name]).__name__}", value=name, rule="a sum is of ReFTs"
            )
    if not grid or not all(0 <= one <= sys.float_info.max for one in grid):
        raise ConfigError(f"grid={shown(grid)}", value=list(grid), rule="finite weights, 0 or more")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"rounds={rounds!r}", value=rounds, rule="an int, 1 or more")
