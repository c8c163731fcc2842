"""The requests of a worker that name an adapter: which of their tokens a step computes, and how long their prompt is.

All of it stands in what the scheduler sends; nothing is read from the device. A request whose prompt is computed is
looked at no more, unless its adapter edits generated tokens or it is put back and starts over: what it generated
before does not become part of its prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["EXTRA", "Part", "Tracker"]

EXTRA = "reft"
"""The entry of `SamplingParams.extra_args` that carries an adapter's key from the front to the workers."""


@dataclass(frozen=True)
class Part:
    """What a step computes of one request: tokens `past` to `past + length` of its sequence.

    Attributes:
        request: its id.
        adapter: key of its adapter.
        prompt: tokens of its prompt.
    """

    request: str
    adapter: str
    prompt: int
    past: int
    length: int


@dataclass
class _Known:
    adapter: str
    prompt: int
    generates: bool


class Tracker:
    """The requests that name an adapter, from the first step that computes them to the last.

    Args:
        generates: whether an adapter, by its key, can edit generated tokens; raises where there is no such adapter.
    """

    def __init__(self, generates: Callable[[str], bool]) -> None:
        self.generates = generates
        self.known: dict[str, _Known] = {}
        self.pending: set[str] = set()

    def step(self, scheduled: Any) -> list[Part]:
        """The parts of a step in which a token may be edited.

        Args:
            scheduled: vLLM's `SchedulerOutput`.
        """
        for request in scheduled.finished_req_ids:
            self.known.pop(request, None)
            self.pending.discard(request)
        past: dict[str, int] = {}
        for new in scheduled.scheduled_new_reqs:
            self._add(new)
            past[new.req_id] = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        self.pending.update(request for request in cached.resumed_req_ids if request in self.known)
        if not self.pending:
            return []
        past.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return [
            self._part(request, past[request], scheduled.num_scheduled_tokens[request])
            for request in sorted(self.pending & past.keys() & scheduled.num_scheduled_tokens.keys())
        ]

    def uses(self, adapter: str) -> bool:
        """Whether a request that has not ended names this adapter."""
        return any(known.adapter == adapter for known in self.known.values())

    def _add(self, new: Any) -> None:
        parameters = new.sampling_params
        adapter = None if parameters is None else (parameters.extra_args or {}).get(EXTRA)
        self.known.pop(new.req_id, None)
        self.pending.discard(new.req_id)
        if adapter is not None:
            self.known[new.req_id] = _Known(adapter, len(new.prompt_token_ids), self.generates(adapter))
            self.pending.add(new.req_id)

    def _part(self, request: str, past: int, length: int) -> Part:
        known = self.known[request]
        if not known.generates and past + length >= known.prompt:
            self.pending.discard(request)
        return Part(request, known.adapter, known.prompt, past, length)
