"""Which requests of continuous batching share blocks of keys and values, where requests name their adapters.

A block holds the edits with which it was computed. transformers finds one by a hash over the tokens before its end;
here the first token of a request that names adapters is one that only requests with the same edits have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_reft.hub_format.positions import All, First, Positions, PromptWindow, Special
from peft_reft.runtime.state import ModelState

from .asked import AskedRequests
from .records import edits_of

__all__ = ["BlockSalts", "shared_reach"]

LOWEST = -(2**31)
"""transformers hashes tokens as integers of 32 bits."""


def shared_reach(positions: Positions) -> int | None:
    """How long two prompts must be at least, so that tokens which both begin with are edited alike in both.

    None where no length suffices: a term counts from the prompt's end, or from where generation starts.

    >>> from peft_reft.hub_format.positions import parse_positions
    >>> [shared_reach(parse_positions(text)) for text in ("f4", "all-f2", "p[1:6]", "l1", "generated")]
    [4, 2, 6, None, None]
    """
    reach = 0
    for term in (*positions.terms, *positions.exclusions):
        if isinstance(term, First):
            reach = max(reach, term.count)
        elif isinstance(term, PromptWindow) and (term.start or 0) >= 0 and (term.stop or -1) >= 0:
            reach = max(reach, term.stop or 0)
        elif not isinstance(term, (All, Special)):
            return None
    return reach


@dataclass
class BlockSalts:
    """Of one manager.

    Attributes:
        state: of the model.
        requests: that name adapters.
        numbers: what a request's edits depend on → a number of its own.
    """

    state: ModelState
    requests: AskedRequests
    numbers: dict[object, int] = field(default_factory=dict)

    def attach(self, cache: Any) -> None:
        """Stand between a cache and its hashes; a cache of another make shares nothing.

        A cache is empty when its first forward starts, so nothing has been found in it before.
        """
        if getattr(cache, "_reft_salts", None) is self:
            return
        cache._reft_salts = self
        allocators = list(getattr(cache, "cache_allocators", {}).values())
        known = allocators and all(hasattr(allocator, "mark_complete_blocks") for allocator in allocators)
        if not known or not hasattr(cache, "search_prefix_match"):
            cache.use_prefix_sharing = cache.allow_block_sharing = False
            return
        cache.search_prefix_match = self._searching(cache.search_prefix_match)
        for allocator in allocators:
            allocator.mark_complete_blocks = self._marking(allocator.mark_complete_blocks)

    def _searching(self, own: Callable[[str, Sequence[int]], int]) -> Callable[[str, Sequence[int]], int]:
        def search(request: str, tokens: Sequence[int]) -> int:
            salted = self.salted(request, tokens)
            return 0 if salted is None else own(request, salted)

        return search

    def _marking(self, own: Callable[..., None]) -> Callable[..., None]:
        def mark(request: str, tokens: Sequence[int], count: int) -> None:
            salted = self.salted(request, tokens)
            if salted is not None:
                own(request, salted, count)

        return mark

    def salted(self, request: str, tokens: Sequence[int]) -> Sequence[int] | None:
        """The tokens by which a request's blocks are found; None where nobody may share them."""
        asked = self.requests.of(request)
        if asked is None or asked.names is None:
            return tokens
        model: Any = self.state.model
        size = model.config.get_text_config().vocab_size
        reach = self._reach(asked.names)
        length = asked.prompt if reach is None or asked.prompt < reach else None
        key = edits_of(self.state, asked.names), length
        number = self.numbers.setdefault(key, len(self.numbers))
        first = -1 - number * size - tokens[0]
        return None if tokens[0] >= size or first < LOWEST else [first, *tokens[1:]]

    def _reach(self, names: Sequence[str]) -> int | None:
        reaches = [shared_reach(group.positions) for name in names for group in self.state.views[name].groups]
        return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)
