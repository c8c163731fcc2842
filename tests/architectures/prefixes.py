"""`make test-prefixes`: which classes' edited prefixes can be exported; writes docs/prefixes.md.

Each causal class is made tiny with LoReFT inside of a prefix of nine tokens. `export_prefix` gives a prefix, by which
the base has the edited model's logits and tokens, in transformers' cache and in stock PEFT, or says why not.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor

from peft_reft import ReftConfig, export_prefix
from peft_reft.generation.export_prefix import ExportedPrefix

from .checks import CLOSE
from .classes import Subject, subjects
from .decoding import can_generate, generated
from .findings import FAILURES, Result, WrongError, found_by, told
from .models import NotTinyError, Tiny, made
from .page import cell
from .sweep import examined, folder_of_results

__all__ = ["HEAD", "examine_prefix", "prefix_page"]

HEAD, REST, ROWS = 9, 4, 2
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "prefixes.md"
WORDS = {"right": "exact", "right where the base is": "exact"}

_TEXT = """# Prefixes that stand for edits

Written by `make test-prefixes` with transformers {transformers} and torch {torch}; do not edit.

[`export_prefix`](serving.md#without-peft-reft) turns edits of a fixed prefix into keys and values that need no
`peft_reft`. Every causal language model class that transformers' auto classes name is made tiny, with LoReFT at
`f3+p[4:7]` of a prefix of nine tokens, and its prefix exported:

- **cache**: transformers' cache, given to a base without the adapter, with a continuation of four tokens: the logits
  of the edited model on the whole, {close:g} of the largest;
- **stock PEFT**: the folder, loaded by `PeftModel.from_pretrained` onto a base without the adapter: the same logits,
  and the same tokens by `generate`, for classes that generate.

What is not exact is refused, and the reason is the error's.

| verdict | classes |
| --- | ---: |
"""


def examine_prefix(subject: Subject) -> Result:
    """Examine one class."""
    try:
        tiny = made(subject)
    except NotTinyError as error:
        return Result(subject.family, subject.name, "not tiny", told(error))
    twin = copy.deepcopy(tiny.model)
    head = tiny.batch(HEAD, 1)["input_ids"]
    rest = torch.tensor(tiny.tokens)[torch.arange(ROWS * REST).view(ROWS, REST) * 7 % len(tiny.tokens)]
    kept: list[tuple[ExportedPrefix, PeftModel]] = []

    def exported() -> None:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            config = ReftConfig(r=2, positions="f3+p[4:7]", share_weights=False, init_weights=False)
            model = get_peft_model(tiny.model, config).eval()
        kept.append((export_prefix(model, head), model))

    findings = [found_by("export", exported)]
    if kept:
        prefix, model = kept[0]
        whole = torch.cat([head.expand(ROWS, -1), rest], 1)
        with torch.no_grad():
            wanted = model(**_given(tiny, whole)).logits[:, HEAD:]
        findings.append(found_by("cache", lambda: _check_cache(tiny, twin, prefix, rest, wanted)))
        findings.append(found_by("stock PEFT", lambda: _check_peft(tiny, twin, prefix, (rest, whole), model, wanted)))
    return Result.of(subject.family, subject.name, findings)


def _given(tiny: Tiny, ids: Tensor, before: int = 0) -> dict[str, Tensor]:
    given = {"input_ids": ids}
    if tiny.takes("attention_mask"):
        given["attention_mask"] = torch.ones(len(ids), before + ids.shape[1], dtype=torch.long)
    return given


def _check_cache(tiny: Tiny, twin: Any, prefix: ExportedPrefix, rest: Tensor, wanted: Tensor) -> None:
    cache = prefix.past_key_values
    cache.batch_repeat_interleave(ROWS)
    with torch.no_grad():
        _same(twin(**_given(tiny, rest, HEAD), past_key_values=cache).logits, wanted)


def _check_peft(
    tiny: Tiny, twin: Any, prefix: ExportedPrefix, ids: tuple[Tensor, Tensor], model: PeftModel, wanted: Tensor
) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = PeftModel.from_pretrained(copy.deepcopy(twin), prefix.save_pretrained(f"{folder}/prefix")).eval()
    given = {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0])}
    with torch.no_grad():
        _same(loaded(**given).logits, wanted)
    if not can_generate(tiny):
        return None
    expected = generated(tiny, model, _given(tiny, ids[1]))
    loaded.generation_config = tiny.model.generation_config
    loaded.get_base_model().generation_config = tiny.model.generation_config
    found = generated(tiny, loaded, given)
    if not torch.equal(found, expected):
        raise WrongError(f"generate gives {found.tolist()}, the edited model {expected.tolist()}")
    return None


def _same(found: Tensor, wanted: Tensor) -> None:
    off = float((found - wanted).abs().max() / wanted.abs().max())
    if not off <= CLOSE:
        raise WrongError(f"logits are off by {off:.1e} of the largest")


def prefix_page(results: Sequence[Result]) -> str:
    """The page, in Markdown."""
    close, version = CLOSE, torch.__version__.partition("+")[0]
    text = _TEXT.format(transformers=transformers.__version__, torch=version, close=close)
    for word, count in Counter(_word(one) for one in results).most_common():
        text += f"| {word} | {count} |\n"
    text += "\n| class | verdict | reasons |\n| --- | --- | --- |\n"
    for one in sorted(results, key=lambda one: one.name):
        text += f"| `{one.name}` | {_word(one)} | {cell(one)} |\n"
    return text


def _word(result: Result) -> str:
    return WORDS.get(result.verdict, result.verdict)


def main() -> int:
    """Examine all classes, or those named, and write the page of all; 1 where one is inexact and nothing says so."""
    parser = argparse.ArgumentParser(prog="architectures.prefixes", description=__doc__)
    parser.add_argument("names", nargs="*", help="classes to examine; all of them, and the page, without")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "prefixes")
    given = parser.parse_args()
    chosen = [one for one in subjects("causal") if not given.names or one.name in given.names]
    results, folder = [], folder_of_results(given.results)
    for result in examined(chosen, folder, workers=given.workers, exam=examine_prefix):
        results.append(result)
        sys.stdout.write(f"{len(results)}/{len(chosen)} {result.name}: {_word(result)}. {result.reason}\n")
        sys.stdout.flush()
    if not given.names:
        PAGE.write_text(prefix_page(results), "utf-8")
    return int(any(one.verdict in FAILURES for one in results))


if __name__ == "__main__":
    sys.exit(main())
