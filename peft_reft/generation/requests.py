"""The requests of one packed forward as rows of a batch, and the way back from rows to packed columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_reft.runtime.inputs import CallInputs
from peft_reft.runtime.past import unknown_length
from peft_reft.runtime.plan import StackPlan
from peft_reft.runtime.resolve import slot_masks
from peft_reft.runtime.situation import Situation, UnitMask
from peft_reft.runtime.views import AdapterView

__all__ = ["Batch", "Request"]


@dataclass(frozen=True)
class Request:
    """One request in a forward: it computes tokens `past` to `past + length` of its sequence.

    Attributes:
        prompt: how many tokens its prompt has; what it generated before it was put back into the queue is none.
        past: tokens in the cache.
        length: tokens in this forward.
        column: where they start among the packed ones.
        names: of the adapters that it names; None where it is edited by those that are active.
    """

    prompt: int
    past: int
    length: int
    column: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Batch:
    """A packed forward `[1, length]` of several requests; columns after the last request are filler."""

    requests: tuple[Request, ...]
    length: int
    input_ids: Tensor
    device: torch.device

    @classmethod
    def of(
        cls, processor: Any, call: Mapping[str, Any], named: Callable[[str], tuple[str, ...] | None]
    ) -> Batch | None:
        """Read a manager's batch processor; None where it does not describe this call.

        `named` gives the adapters that a request names, by its id.

        All of it is Python's own integers: nothing waits for a device.
        """
        tokens, offsets = call.get("input_ids"), call.get("cu_seq_lens_q")
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape[0] != 1:
            return None
        outputs = processor.inputs_and_outputs
        pairs = getattr(outputs, "io_pairs", None)  # with asynchronous batching
        if pairs is not None:
            outputs = pairs[outputs.current_pair].host_io
        requests: list[Request] = []
        column = 0
        for future in outputs.requests_in_batch:
            state, length = future.state, future.query_length
            prompt = state._true_initial_tokens or len(state.initial_tokens)
            past = state.position_offset - length
            requests.append(Request(prompt, past, length, column, named(state.request_id)))
            column += length
        if not requests or column > tokens.shape[1]:
            return None
        known = [*(request.column for request in requests), column]
        if isinstance(offsets, Tensor) and offsets.device.type == "cpu" and offsets[: len(known)].tolist() != known:
            return None
        return cls(tuple(requests), tokens.shape[1], tokens, tokens.device)

    def plan(self, views: Sequence[AdapterView], situation: Situation) -> StackPlan | None:
        """What a stack edits in this forward; None where that is nothing.

        Each request becomes a row that is padded on the left, as `generate` has them, and is resolved as such.
        """
        if situation.role != "only":
            raise unknown_length()
        generates = any(view.touches_generated for view in views)
        chosen = [request for request in self.requests if generates or request.past < request.prompt]
        if not chosen:
            return None
        width = max(request.prompt for request in chosen)
        slots = max(width - request.prompt + request.past + request.length for request in chosen)
        slots = max(slots, width)
        prompts = torch.tensor([request.prompt for request in chosen])
        real = torch.arange(width) >= width - prompts[:, None]
        rows, columns, packed, starts = self._places(chosen, width)
        ids = torch.full((len(chosen), slots), -1)
        ids[rows, columns] = self.input_ids[0, packed.to(self.device)].to("cpu", torch.long) if _reads(views) else -1
        inputs = CallInputs(len(chosen), slots, torch.device("cpu"), input_ids=ids)
        situation = Situation(has_completion=True, explicit=situation.explicit, prompt_width=width, prompt_real=real)
        masks = {
            key: self._packed(unit, rows, columns, packed, starts)
            for key, unit in slot_masks(inputs, views, situation).items()
        }
        if not any(unit.width for unit in masks.values()):
            return None
        past = max(request.past for request in chosen)
        return StackPlan(1, self.length, masks, past)

    def _places(self, chosen: Sequence[Request], width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of every token of the chosen requests: its row, its slot there, its packed column, its sequence's start."""
        lengths = torch.tensor([request.length for request in chosen])
        rows = torch.arange(len(chosen)).repeat_interleave(lengths)
        starts = torch.tensor([request.column for request in chosen])[rows]
        within = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
        slots = torch.tensor([width - request.prompt + request.past for request in chosen])[rows] + within
        return rows, slots, starts + within, starts

    def _packed(self, unit: UnitMask, rows: Tensor, columns: Tensor, packed: Tensor, starts: Tensor) -> UnitMask:
        mask = torch.zeros(1, self.length, dtype=torch.bool)
        start = torch.arange(self.length)[None].clone()
        mask[0, packed] = unit.mask[rows, columns]
        start[0, packed] = starts
        return UnitMask(mask.to(self.device), int(mask.sum()), start.to(self.device))


def _reads(views: Sequence[AdapterView]) -> bool:
    """Whether ids matter, which stand on the device: only to specs with a special token."""
    return any(view.token_ids for view in views)
