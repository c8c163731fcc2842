"""Prefix caching: which requests may share blocks of keys and values, said by vLLM's `cache_salt`.

A block holds the edits with which it was computed. Requests of one adapter share where equal tokens are edited alike;
where edits depend on how long a prompt is, among prompts of one length. The base's requests share as before.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft_reft.generation.block_salts import shared_reach
from peft_reft.hub_format.schema import SiteGroup

__all__ = ["reach_of", "salt_for", "user_salt"]

MARK = "reft:"


def reach_of(groups: Iterable[SiteGroup]) -> int | None:
    """How long prompts must be to share blocks whatever their length; None where no length suffices."""
    reaches = [shared_reach(group.positions) for group in groups]
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)


def salt_for(key: str, reach: int | None, prompt: int, given: str | None) -> str:
    """The salt of a request with an adapter.

    Args:
        key: of the adapter, another after each time that it is loaded.
        reach: see `reach_of`.
        prompt: tokens of the request's prompt.
        given: the salt that the user gave.

    >>> salt_for("emoji.1", 3, 10, None), salt_for("emoji.1", 3, 2, None), salt_for("emoji.1", None, 10, "mine")
    ('reft:emoji.1:', 'reft:emoji.1:2:', 'reft:emoji.1:10:mine')
    """
    length = "" if reach is not None and prompt >= reach else f"{prompt}:"
    return f"{MARK}{key}:{length}{given or ''}"


def user_salt(given: str | None) -> str | None:
    """The salt of a request of the base: the user's, moved away from those of adapters where it looks like one."""
    return f"user:{given}" if given is not None and given.startswith((MARK, "user:")) else given
