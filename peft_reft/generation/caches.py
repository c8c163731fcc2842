"""What a cache hides: edits that count from another prompt's end, which cannot be taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.hub_format.positions import First, Last
from peft_reft.runtime.past import is_marked
from peft_reft.runtime.views import AdapterView

__all__ = ["check_continued"]


def check_continued(cache: Any, views: Iterable[AdapterView], *, cached: int, width: int) -> None:
    """Refuse to continue a cache where one plain prefill of the whole prompt would edit other tokens.

    Args:
        cache: as passed to `generate`.
        views: the active adapters.
        cached: how many slots it holds.
        width: slots of the prompt, the cached ones included.
    """
    for view in views:
        for group in view.groups:
            if not group.positions.needs_prompt_end:
                continue
            reach = (
                term.count if isinstance(term, Last) else width
                for term in group.positions.terms
                if not isinstance(term, First)
            )
            if max(reach, default=0) > width - cached:
                raise _refuse(f"positions {str(group.positions)!r} reach into {cached} cached slots of {width}")
            if is_marked(cache):
                raise _refuse(f"{cached} cached slots hold edits that count from the end of another prompt")


def _refuse(what: str) -> PromptBoundaryError:
    return PromptBoundaryError(
        what,
        code="positions.cached",
        rule="cached tokens cannot be edited any more, nor their edits be taken back",
        fix="pass prompt_lengths if the prompt is the one that the cache was made with, or generate without "
        "past_key_values",
    )
