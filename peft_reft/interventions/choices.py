"""What fields of a config take whose values are fixed, for `help(ReftConfig)`: read off the tables themselves."""

from __future__ import annotations

import textwrap

from peft_reft.hub_format.groups import ACTIVATIONS, COMPONENTS, TURNS
from peft_reft.hub_format.kinds import kind_signature, known_kinds
from peft_reft.hub_format.positions import GRAMMAR

from .registry import intervention_class

__all__ = ["choices"]


def choices() -> str:
    """A section of a docstring: each field with its valid names, kinds with their equation and their options.

    Returns:
        Lines without indentation, `Choices:` first.
    """
    names = [name for name in known_kinds() if kind_signature(name).module.startswith("peft_reft.")]
    parts = [f"intervention: one of {len(names)} kinds, or one that `register_intervention` has named."]
    parts += [textwrap.indent(_kind(name), "    ") for name in names]
    parts += [
        _wrapped(f"component: {', '.join(COMPONENTS)}, head_output[<n>], heads."),
        _wrapped(f"positions: {GRAMMAR}."),
        _wrapped(f"turns: {', '.join(TURNS)}."),
        _wrapped(f"act_fn: None, {', '.join(ACTIVATIONS)}."),
        _wrapped('init_weights: None, True, "paper", False.'),
    ]
    return "\n".join(["Choices:", *(textwrap.indent(part, "    ") for part in parts)])


def _kind(name: str) -> str:
    said = (intervention_class(name).__doc__ or "").strip().splitlines()[0]
    options = [f"{key}={option.default!r}" for key, option in kind_signature(name).options.items()]
    return _wrapped(" ".join([f"{name}: {said}", *([f"Options: {', '.join(options)}."] if options else [])]))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 108, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
