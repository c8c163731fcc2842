"""A bar where work is long: after a second, on a terminal or in a notebook, unless bars are switched off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from huggingface_hub.utils.tqdm import tqdm as hub_tqdm
from tqdm.auto import tqdm as plain_bar

__all__ = ["progress"]

T = TypeVar("T")
HUB_BAR: Any = hub_tqdm
"""Which asks whether bars are switched off; its arguments have no types."""
DELAY = 1.0
"""Seconds before a bar is drawn: what is done by then needs none."""


def progress(
    items: Iterable[T], name: str, *, unit: str, total: int | None = None, shown: bool | None = None, keep: bool = True
) -> Iterator[T]:
    """The items, with a bar on stderr.

    Args:
        items: to go over.
        name: of the work, one word; written before the bar. `disable_progress_bars("peft_reft.<name>")` of
            huggingface_hub switches this bar off.
        unit: what an item is called.
        total: their number, where `items` has no length.
        shown: None: where stderr is a terminal, or a notebook shows widgets, the work takes longer than a second, and
            bars are not switched off (`HF_HUB_DISABLE_PROGRESS_BARS`, or `disable_progress_bars` of huggingface_hub or
            transformers). True: always, at once. False: never.
        keep: whether the bar stays on the screen when all is done; False for work inside of other work.
    """
    if shown is False:
        return iter(items)
    if shown:
        return iter(plain_bar(items, desc=name, unit=unit, total=total, leave=keep))
    return iter(
        HUB_BAR(
            items,
            desc=name,
            unit=unit,
            total=total,
            leave=keep,
            delay=DELAY,
            disable=None,
            name=f"peft_reft.{name}",
        )
    )
