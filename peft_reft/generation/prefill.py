"""The head of a longer prompt, run once: what was edited in it is noted on its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.positions import Last, PromptWindow
from peft_reft.runtime.inputs import Explicit
from peft_reft.runtime.past import cache_of
from peft_reft.runtime.situation import UnitKey
from peft_reft.runtime.state import ModelState
from peft_reft.runtime.views import AdapterView

from .records import CacheRecord, edit_state, note_record
from .session import Session

__all__ = ["recorded_prefill"]


def recorded_prefill(state: ModelState, call: dict[str, Any]) -> Any:
    """Run the head of a longer prompt, and note on the cache in its output what was edited.

    Args:
        state: of the model.
        call: keywords of its forward: `input_ids` `[batch, seq]`, `attention_mask` or None, …

    Raises:
        ConfigError: a cache that takes no note.
    """
    ids, mask = call["input_ids"], call["attention_mask"]
    batch, width = ids.shape
    rest = 1 + max((_reach(view) for view in state.active_views()), default=0)
    real = None if mask is None else torch.nn.functional.pad(mask.bool(), (0, rest), value=True)
    recording: dict[str, dict[UnitKey, Tensor]] = {}
    session = Session(state, batch, width + rest, real, Explicit(), prompt=ids, recording=recording)
    running = state.running
    outer = running.session
    try:
        running.session = session
        output = state.model(**call)
    finally:
        running.session = outer
    cache = cache_of(output)
    if isinstance(cache, (list, tuple)):  # of Rwkv and XLNet
        raise ConfigError(
            f"{type(state.model).__name__} returned a {type(cache).__name__} of tensors",
            value=type(cache).__name__,
            rule="a prompt cache carries a note of what was edited, which no list takes",
            fix="call generate without a prompt cache",
        )
    if cache is not None:
        note_record(cache, CacheRecord(ids.clone(), recording, edit_state(state)))
    return output


def _reach(view: AdapterView) -> int:
    """How far from a prompt's end its edits can start."""
    bounds = [0]
    for group in view.groups:
        for term in (*group.positions.terms, *group.positions.exclusions):
            if isinstance(term, Last):
                bounds.append(term.count)
            elif isinstance(term, PromptWindow):
                bounds += [-bound for bound in (term.start, term.stop) if bound is not None and bound < 0]
    return max(bounds)
