"""The edits of one worker: its adapters, its slots, the requests that name them, and what the next forward edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

from .op import ACTIVE
from .packed import Packed, read_packed
from .pool import Pool
from .steps import edited_rows, layer_edits
from .tracking import Part, Tracker

__all__ = ["Editor"]


class Editor:
    """Of one worker process.

    Args:
        layers: of the model.
        pool: of slots on the device.
    """

    def __init__(self, layers: int, pool: Pool) -> None:
        self.layers = layers
        self.pool = pool
        self.adapters: dict[str, Packed] = {}
        self.tracker: Tracker = Tracker(self._generates)
        self.parts: list[Part] = []
        self.leaving: set[str] = set()

    def load(self, key: str, folder: str) -> None:
        """Read an adapter, which the front has found fit to be served, and keep it under a key of its own.

        Raises:
            ReftError: the folder is not what it was.
        """
        self.adapters[key] = read_packed(Path(folder), key, device=self.pool.device)

    def drop(self, key: str) -> None:
        """Forget an adapter, as soon as no request that this worker knows names it."""
        if key in self.adapters:
            self.leaving.add(key)
            self._forget()

    def begin(self, scheduled: Any) -> None:
        """Take note of what the scheduler wants computed, vLLM's `SchedulerOutput`, before the runner does."""
        self.parts = self.tracker.step(scheduled)
        if self.leaving:
            self._forget()

    @contextmanager
    def forward(self, requests: Sequence[str], lengths: Sequence[int], ids: Tensor | None) -> Iterator[None]:
        """While the model runs, its layers edit the rows of this step.

        Args:
            requests: ids of the requests, in the order of their rows.
            lengths: rows of each.
            ids: token ids `[rows or more]`.
        """
        parts, self.parts = self.parts, []
        if not parts:
            yield
            return
        starts, row = {}, 0
        for request, length in zip(requests, lengths, strict=True):
            starts[request] = row
            row += length
        edited = edited_rows([(part, starts[part.request]) for part in parts], self.adapters, length=row, ids=ids)
        ACTIVE.layers = layer_edits(edited, self.adapters, self.pool, layers=self.layers) if edited else {}
        try:
            yield
        finally:
            ACTIVE.layers = {}

    def report(self) -> dict[str, int]:
        """Numbers for whoever runs the engine."""
        return {
            "adapters": len(self.adapters.keys() - self.leaving),
            "host_bytes": sum(packed.bytes for packed in self.adapters.values()),
            "slot_bytes": self.pool.bytes,
            "slots": self.pool.slots,
            "slots_used": len(self.pool.held),
            "slot_copies": self.pool.copies,
            "requests": len(self.tracker.known),
            "unsound_rows": int(self.pool.unsound),
        }

    def _forget(self) -> None:
        for key in [key for key in self.leaving if not self.tracker.uses(key)]:
            self.leaving.discard(key)
            self.pool.drop((key, unit) for unit in self.adapters.pop(key).affine)

    def _generates(self, key: str) -> bool:
        if key not in self.adapters:
            raise ConfigError(
                f"a request names the adapter {key!r}, which this worker does not hold",
                code="vllm.unknown",
                value=key,
                rule="the front admits a request only for an adapter that every worker has loaded",
            )
        return self.adapters[key].view.touches_generated
