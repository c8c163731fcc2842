"""Keywords that a config or a function does not have: what other libraries, or a slip of the pen, call ours."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from .errors import ConfigError

__all__ = ["KeywordError", "check_keywords", "explains_keywords", "known_of", "meant"]

_Given = ParamSpec("_Given")
_Told = TypeVar("_Told")


ELSEWHERE = {
    "alpha": "scale_adapter(model, name, factor), at run time",
    "bias": "intervention='bias', or a kind that has one",
    "component_name": "component",
    "embed_dim": "",
    "hidden_size": "",
    "intervention_locations": "positions, or intervention_locations as a keyword of forward and generate",
    "intervention_type": "intervention",
    "intervention_types": "intervention",
    "layer": "layers_to_transform",
    "layers": "layers_to_transform",
    "leave_out": "layers_to_transform, which names the layers that are edited",
    "lora_alpha": "scale_adapter(model, name, factor), at run time",
    "lora_dropout": "dropout",
    "low_rank_dimension": "r",
    "non_linearity": "act_fn",
    "num_interventions": "layers_to_transform, one intervention for each layer; share_weights=False has one more for "
    "each term of positions",
    "orthogonality": "intervention: 'loreft' has orthonormal rows, 'noreft' has not",
    "position": "positions, e.g. 'f7+l7'",
    "prefix_positions": "positions, e.g. 'f3' for the first three",
    "rank": "r",
    "representations": "interventions, a list of dicts",
    "subtract_projection": "intervention: 'loreft' subtracts, 'direft' does not",
    "suffix_positions": "positions, e.g. 'l3' for the last three",
    "target_modules": "layers_to_transform and component",
    "tied_weights": "share_weights",
    "unit_locations": "positions, or intervention_locations as a keyword of forward and generate",
}
"""Names of pyreft, pyvene, adapters and of PEFT's LoRA → what says the same here; empty: the model says it itself."""


class KeywordError(ConfigError, TypeError):
    """A keyword that the config does not have; a `TypeError` too, as PEFT expects of one."""

    default_code = "config.keyword"


def check_keywords(given: Iterable[str], known: Iterable[str], *, of: str) -> None:
    """Refuse keywords that a config does not have.

    Args:
        given: the keywords.
        known: those that it has.
        of: name of the config.

    Raises:
        KeywordError: one that it does not have; the fix names the right one.
    """
    names = list(known)
    for name in given:
        if name in names:
            continue
        raise KeywordError(
            f"{of}() got an unexpected keyword argument {name!r}",
            value=name,
            rule=f"it has: {', '.join(names)}",
            fix=meant(name, names),
        )


@functools.cache
def known_of(method: Callable[..., object]) -> tuple[str, ...]:
    """What a method takes beside `self`; asked once a method."""
    return tuple(inspect.signature(method).parameters)[1:]


def explains_keywords(**others: str) -> Callable[[Callable[_Given, _Told]], Callable[_Given, _Told]]:
    """Decorator of a function: a keyword that it does not have is refused as a config's is, with the right one.

    Args:
        others: what other libraries call its parameters → what says the same here.

    Returns:
        The decorator; the function keeps its signature.
    """

    def explained(function: Callable[_Given, _Told]) -> Callable[_Given, _Told]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Told:
            for name in kwargs:
                if name not in names:
                    here = re.match(r"\w*", ELSEWHERE.get(name, ""))
                    known = meant(name, names) if name not in ELSEWHERE or (here and here[0] in names) else None
                    raise KeywordError(
                        f"{function.__name__}() got an unexpected keyword argument {name!r}",
                        value=name,
                        rule=f"it has: {', '.join(names)}",
                        fix=f"use {others[name]}" if name in others else known,
                    )
            return function(*args, **kwargs)

        return call

    return explained


def meant(name: str, known: Iterable[str]) -> str | None:
    """What to do about a name that is not known.

    Args:
        name: as it was written.
        known: those that are.

    Returns:
        The fix, for an error; None where nothing is like it.
    """
    if name in ELSEWHERE:
        return f"use {ELSEWHERE[name]}" if ELSEWHERE[name] else "leave it out: the model says it itself"
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.7)
    return f"use {close[0]}" if close else None
