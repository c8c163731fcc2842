"""What a cache holds, noted on it: which tokens were edited, by what. So that it is reused rightly or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.situation import UnitKey, UnitMask
from peft_reft.runtime.state import ModelState

__all__ = ["CacheRecord", "edit_state", "edits_of", "note_record", "record_of"]

_RECORD = "_reft_record"


@dataclass(frozen=True)
class CacheRecord:
    """What went into a prompt cache.

    Attributes:
        ids: long `[batch, cached]`.
        masks: stack → (place of the adapter, unit) → the tokens it edited, bool `[batch, cached]`; `state` names them.
        state: of the adapters, as `edit_state` gives it.
    """

    ids: Tensor
    masks: Mapping[str, Mapping[UnitKey, Tensor]]
    state: tuple[Any, ...]

    @property
    def length(self) -> int:
        """How many slots the record speaks of."""
        return self.ids.shape[1]

    def ids_for(self, batch: int) -> Tensor:
        """The ids for a call of `batch` rows, long `[batch, cached]`."""
        return _rows(self.ids, batch)

    def check_ids(self, given: Tensor) -> None:
        """Refuse a prompt whose head, long `[batch, n]`, is not what was cached."""
        length = min(self.length, given.shape[1])
        if not torch.equal(self.ids_for(given.shape[0])[:, :length].to(given.device), given[:, :length]):
            raise _refuse("the prompt does not start with the tokens of its prompt cache", "positions.cache_ids")

    def check_state(self, state: ModelState) -> None:
        """Refuse a cache that was made with other adapters, other weights or another scale."""
        if self.state != edit_state(state):
            raise _refuse(
                "the prompt cache was made with other adapters than are active now, or with other weights or scales",
                "positions.cache_state",
            )

    def agreeing(self, stack: str, masks: Mapping[UnitKey, UnitMask]) -> int:
        """How many cached slots, from the first on, hold exactly the edits that `masks` `[batch, slots]` ask for."""
        recorded = self.masks.get(stack, {})
        agreed = self.length
        for key in {*recorded, *masks}:
            batch = next(iter(masks.values())).mask.shape[0] if masks else self.ids.shape[0]
            held = _rows(recorded[key], batch) if key in recorded else None
            asked = masks[key].mask if key in masks else None
            width = min(self.length, self.length if asked is None else asked.shape[1])
            differs = torch.zeros(batch, width, dtype=torch.bool, device=self.ids.device)
            for one in (held, asked):
                if one is not None:
                    differs = differs ^ one[:, :width].to(differs.device)
            columns = differs.any(0).nonzero()
            if columns.numel():
                agreed = min(agreed, int(columns[0]))
        return agreed

    def check(self, stack: str, masks: Mapping[UnitKey, UnitMask], past: int) -> None:
        """Refuse to continue where one plain prefill would have edited other tokens among the `past` cached ones."""
        if (agreed := self.agreeing(stack, masks)) < min(past, self.length):
            raise _refuse(
                f"slot {agreed} of {past} cached ones holds other edits than this prompt asks for", "positions.cached"
            )


def edit_state(state: ModelState) -> tuple[Any, ...]:
    """Everything that edits now: sites, units, scales, their parameters and the versions of these."""
    return tuple(
        (path, *key, layer.scaling[key[0]], *(_version(parameter) for parameter in layer.unit(key).parameters()))
        for path, layer in state.layers.items()
        for key in layer.active_keys()
    )


def edits_of(state: ModelState, names: Iterable[str]) -> tuple[Any, ...]:
    """The same of some adapters, whether they are active or not."""
    return tuple(
        (path, name, unit, layer.scaling[name], *(_version(held) for held in layer.unit((name, unit)).parameters()))
        for name in names
        for path, layer in state.layers.items()
        if layer.edits_by(name)
        for unit in layer.units[name]
    )


def _version(parameter: Tensor) -> tuple[int, int]:
    """Which tensor, and how often it was written; one that was made in inference mode does not count."""
    return id(parameter), 0 if parameter.is_inference() else parameter._version


def note_record(cache: Any, record: CacheRecord) -> None:
    """Put a record on a cache; it goes with its copies."""
    setattr(cache, _RECORD, record)


def record_of(cache: Any) -> CacheRecord | None:
    """The record that a cache carries, or None."""
    return getattr(cache, _RECORD, None)


def _rows(tensor: Tensor, batch: int) -> Tensor:
    repeats, rest = divmod(batch, tensor.shape[0])
    if rest or not repeats:
        raise _refuse(f"a prompt cache of {tensor.shape[0]} rows in a batch of {batch}", "positions.cache_batch")
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 0)


def _refuse(what: str, code: str) -> PromptBoundaryError:
    return PromptBoundaryError(
        what,
        code=code,
        rule="a cached prompt is reused only where the result is that of generating without it",
        fix="pass the whole prompt's ids, copy the cache for every use (copy.deepcopy), or make it anew with "
        "prompt_cache",
    )
