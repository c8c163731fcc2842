"""Writes docs/architectures.md from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from .findings import FAILURES, SAID, VERDICTS, Result

__all__ = ["cell", "page", "write_page"]

_HEAD = """# Architectures

Written by `make test-architectures` with transformers {transformers} and torch {torch}; do not edit.

Every causal, encoder-decoder, image-text, encoder, embedding and classification model class that transformers' auto
classes name is made tiny by shrinking its config and examined with LoReFT at `f2+l2` on every block:

- **edited tokens**: what each block gives before and after the edit, read by hooks: exactly the tokens of the spec
  differ; with and without the adapter the same at the first block;
- **outputs**: those of the equation in plain hooks, 1e-4 of the largest;
- **disabled**: the base's outputs, bit for bit;
- **left padding**, **right padding**: edited tokens as without, outputs too where the base's are;
- **gradients**: a training step edits the prompt only, and reaches every parameter of the adapter that the base lets
  it reach, and none of the base;
- **decoding**, **decoding with left padding**: `generate` with a cache gives the tokens of whole forwards with plain
  hooks and no cache, for classes that generate; by itself only where the padded batch, two of whose rows have no
  padding, does not tell;
- **as many rows as columns**: what is refused for its shape is refused in this shape too;
- **saved**: a folder loaded onto another copy of the base gives the same outputs, bit for bit.

Image-text classes are called with text, and with an image where they do not run without; what an image's tokens are
is tested apart ([compatibility](compatibility.md)). Classes that need sound or another input in every call are not
made. What is said of the base too is no fault of the edits: the base model fails the same check without them.

| verdict | meaning | {families} |
| --- | --- | {rules} |
"""


def page(results: Sequence[Result]) -> str:
    """The page, in Markdown."""
    families = list(dict.fromkeys(one.family for one in results))
    counts = Counter((one.verdict, one.family) for one in results)
    text = _HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        families=" | ".join(families),
        rules=" | ".join("---:" for _ in families),
    )
    for verdict, meaning in VERDICTS.items():
        numbers = " | ".join(str(counts[verdict, family] or "") for family in families)
        text += f"| {verdict} | {meaning} | {numbers} |\n"
    for family in families:
        text += f"\n## {family.capitalize()}\n\n| class | verdict | reasons |\n| --- | --- | --- |\n"
        for one in sorted((one for one in results if one.family == family), key=lambda one: one.name):
            verdict = f"**{one.verdict}**" if one.verdict in FAILURES else one.verdict
            text += f"| `{one.name}` | {verdict} | {cell(one)} |\n"
    return text


def write_page(results: Sequence[Result], path: Path) -> None:
    """Write the page; the same results give the same bytes."""
    path.write_text(page(results), "utf-8")


def cell(result: Result) -> str:
    """Which checks say what; checks that say the same stand together."""
    said: dict[str, list[str]] = {}
    for one in result.findings:
        if one.reason:
            said.setdefault(f"{SAID.get(one.verdict, '')}{one.reason}", []).append(one.check.replace(", ", " with "))
    text = "; ".join(f"{', '.join(checks)}: {reason}" for reason, checks in said.items()) or result.reason
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return printable.replace("|", "\\|").replace("<", "&lt;")
