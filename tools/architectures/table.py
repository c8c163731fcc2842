"""Makes `peft_reft/sites/known_blocks.json`: which components of which blocks hold, by probing tiny models of all.

    python -m tools.architectures.table [--check] [class …]

Prints what fails and why. A component is listed where it held in every model that has such a block. With classes,
only the entries of their blocks are made anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import transformers

from peft_reft.hub_format.errors import SiteError
from peft_reft.sites import component_place, find_stacks, text_config
from peft_reft.sites.judge import Found
from peft_reft.sites.probe import judged

from .tiny import names_of_models, tiny_model

FILE = Path(__file__).parents[2] / "peft_reft" / "sites" / "known_blocks.json"
KINDS = {"attention_output": "attention_output", "mlp_output": "mlp_output", "head_output": "head_output[0]"}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}),
    ("FalconForCausalLM", {"new_decoder_architecture": True}),
    ("FalconForCausalLM", {"parallel_attn": False}),
    ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    ("OPTForCausalLM", {"do_layer_norm_before": False}),
    ("OPTForCausalLM", {"word_embed_proj_dim": 16}),
    ("StableLmForCausalLM", {"use_parallel_residual": True}),
    ("GraniteForCausalLM", {"residual_multiplier": 0.22}),
    ("GraniteMoeForCausalLM", {"residual_multiplier": 0.22}),
]
"""Configs beside the default that change how a block adds its parts."""
Row = tuple[str, str, str]
"""Class of a block, component, path inside."""


def rows_of(name: str, **fields: object) -> dict[Row, set[str | None]]:
    """What the probe says of a tiny model of a class: row → the reasons against it, None where it holds.

    Raises:
        Exception: the model cannot be made, has no stack that can be told, or its forward fails.
    """
    model = tiny_model(name, **fields)
    blocks = {
        f"{stack.path}.{index}": model.get_submodule(f"{stack.path}.{index}")
        for stack in find_stacks(model)
        for index in range(stack.length)
    }
    found = judged(model, blocks)
    rows: dict[Row, set[str | None]] = {}
    for path, block in blocks.items():
        for kind, component in KINDS.items():
            try:
                place = component_place(block, component, text_config(model))
            except SiteError:
                continue
            here = found.get((path, kind), Found(place.path, "the forward did not reach it"))
            key = (f"{type(block).__module__}.{type(block).__qualname__}", kind, here.path)
            rows.setdefault(key, set()).add(here.reason)
    return rows


def table_of(rows: Iterable[dict[Row, set[str | None]]]) -> dict[str, dict[str, list[str]]]:
    """Block → component → the paths where it held in every model."""
    merged: dict[Row, set[str | None]] = {}
    for found in rows:
        for row, reasons in found.items():
            merged.setdefault(row, set()).update(reasons)
    table: dict[str, dict[str, list[str]]] = {}
    for (block, kind, path), reasons in sorted(merged.items()):
        if reasons == {None}:
            table.setdefault(block, {}).setdefault(kind, []).append(path)
    return table


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classes", nargs="*")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    asked = parser.parse_args()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    jobs: list[tuple[str, dict[str, object]]] = [(name, {}) for _, name in names_of_models()] + VARIANTS
    if asked.classes:
        jobs = [job for job in jobs if job[0] in asked.classes]
    found = []
    for name, fields in jobs:
        label = f"{name} {fields or ''}".strip()
        try:
            rows = rows_of(name, **fields)
        except Exception as error:  # a model that cannot be made tiny is listed, not probed
            _say(f"not probed  {label}: {type(error).__name__}: {str(error)[:160]}")
            continue
        found.append(rows)
        against = {
            f"{block.rpartition('.')[2]} {kind} {path}: {reason}"
            for (block, kind, path), reasons in rows.items()
            for reason in reasons
            if reason
        }
        _say(f"{'refused' if against else 'holds':10}  {label}")
        for line in sorted(against):
            _say(f"              {line}")
    kept = {}
    if asked.classes:  # the other blocks' entries stay
        seen = {block for rows in found for block, _, _ in rows}
        kept = {block: row for block, row in json.loads(FILE.read_text(encoding="utf-8")).items() if block not in seen}
    text = json.dumps({**kept, **table_of(found)}, indent=1, sort_keys=True) + "\n"
    if asked.check:
        return int(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(" ".join(line.split("\n")) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
