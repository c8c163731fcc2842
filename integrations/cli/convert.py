"""Convert an adapter folder of pyreft or adapters to ours, or one of ours to pyreft, adapters or GGUF."""

from __future__ import annotations

import argparse

from peft_reft import convert

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `peft-reft convert`."""
    parser.add_argument("source", help="the folder; what it is shows in its files")
    parser.add_argument("target", help="a new folder; for --to gguf a file")
    parser.add_argument("--to", choices=("reft", "pyreft", "adapters", "gguf"), default="reft")
    parser.add_argument("--base-model", help="id or folder of the base; needed for --to reft")
    parser.add_argument("--positions", help="what a pyreft folder does not store, e.g. f7+l7")
    parser.add_argument("--share-weights", action=argparse.BooleanOptionalAction, default=None, help="likewise")
    parser.add_argument("--act-fn", help="likewise, e.g. relu; none by default")
    parser.add_argument("--intervention", help="the kind, where an adapters folder cannot say: noreft or direft")


def run(given: argparse.Namespace) -> str:
    """Convert, and say where the result lies."""
    target = convert(
        given.source,
        given.target,
        base_model=given.base_model,
        positions=given.positions,
        share_weights=given.share_weights,
        act_fn=given.act_fn,
        intervention=given.intervention,
        to=given.to,
    )
    return f"wrote {target}"
