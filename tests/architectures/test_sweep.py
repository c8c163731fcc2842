"""The sweep's own checks on three classes, and that what is broken on purpose is found."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from peft_reft.runtime import planning, resolve, whole_prompts

from . import decoding, sweep
from .classes import FAMILIES, Subject, subjects
from .exam import examine
from .findings import FAILURES, VERDICTS, Finding, Result, found_by
from .page import page
from .plain import ShapeError, rows_of
from .shrink import shrunk
from .sweep import Limits, examined

LLAMA = Subject("causal", "LlamaForCausalLM", "llama")
BART = Subject("encoder-decoder", "BartForConditionalGeneration", "bart")
BERT = Subject("embedding", "BertModel", "bert")


def verdicts(result: Result) -> dict[str, str]:
    return {one.check: one.verdict for one in result.findings}


@pytest.mark.parametrize("subject", [LLAMA, BART, BERT], ids=lambda subject: subject.name)
def test_a_class_that_is_right_is_called_right(subject: Subject) -> None:
    result = examine(subject)
    assert result.verdict == "right", result.reason
    decodes = {"decoding, left padding"} if subject is not BERT else set()
    assert {"edited tokens", "outputs", "gradients", "saved", "disabled", *decodes} <= set(verdicts(result))


def beside(model: PeftModel) -> None:
    """Edit the fourth token too, behind the adapter's hook."""

    def edit(module: Any, args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        moved = hidden.clone()
        moved[:, 3] += 1.0
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    model.get_base_model().get_submodule("model.layers.1").register_forward_hook(edit)


def test_an_edit_of_another_token_is_wrong() -> None:
    result = examine(LLAMA, spoil=beside)
    assert result.verdict == "wrong"
    found = verdicts(result)
    assert found["edited tokens"] == found["left padding"] == found["gradients"] == "wrong"
    assert "model.layers.1: edited row 0: [0, 1, 3, 11, 12]" in result.reason


@pytest.mark.parametrize("subject", [LLAMA, BART], ids=lambda subject: subject.name)
def test_edits_one_column_further_are_wrong(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    original = resolve.slot_masks

    def shifted(*args: Any) -> Any:
        return {key: replace(unit, mask=unit.mask.roll(1, 1)) for key, unit in original(*args).items()}

    for module in (planning, whole_prompts):
        monkeypatch.setattr(module, "slot_masks", shifted)
    found = verdicts(examine(subject))
    assert {found[name] for name in ("edited tokens", "outputs", "gradients", "decoding")} == {"wrong"}


def test_edits_forgotten_while_decoding_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(tiny: Any, model: Any, batch: Any) -> Tensor:
        tokens: Tensor = generated(tiny, tiny.model, batch)
        return tokens

    generated = decoding.generated
    from . import checks

    def without(tiny: Any, model: Any, batch: Any) -> Tensor:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                return plain(tiny, model, batch)
        return plain(tiny, model, batch)

    monkeypatch.setattr(checks, "generated", without)
    assert verdicts(examine(LLAMA))["decoding"] == "wrong"


def test_an_error_that_is_not_ours_is_a_crash_and_no_refusal() -> None:
    def broken() -> None:
        raise KeyError("hidden")

    assert found_by("making", broken).verdict == "crashed"
    assert set(FAILURES) == {"crashed", "wrong"} <= set(VERDICTS)


def test_the_worst_finding_decides() -> None:
    right, base = Finding("outputs", "right"), Finding("decoding", "base", "no cache")
    wrong, refused = Finding("gradients", "wrong", "none"), Finding("saved", "refused", "no file")
    assert Result.of("causal", "A", [right, base]).verdict == "right where the base is"
    assert Result.of("causal", "A", [right, refused, base]).verdict == "refused in part"
    assert Result.of("causal", "A", [refused]).verdict == "refused"
    assert Result.of("causal", "A", [right, base, wrong, refused]).verdict == "wrong"


def test_every_family_has_classes_and_no_class_two_families() -> None:
    names = [one.name for family in FAMILIES for one in subjects(family)]
    assert len(names) == len(set(names)) > 400
    assert all(subjects(family) for family in FAMILIES)


def test_rows_and_columns_are_found_in_any_layout() -> None:
    hidden = torch.randn(6, 13, 4, 8)
    for moved in (hidden, hidden.movedim(2, 0), hidden.transpose(0, 1)):
        rows, back = rows_of(moved, 6, 13)
        assert torch.equal(rows, hidden.flatten(2))
        assert torch.equal(back(rows), moved)
    with pytest.raises(ShapeError):
        rows_of(torch.randn(6, 14, 8), 6, 13)


def test_one_layer_of_each_kind_is_kept() -> None:
    from transformers import Gemma3TextConfig

    config = shrunk(Gemma3TextConfig)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert (config.num_hidden_layers, config.hidden_size) == (2, 64)


def test_what_is_stored_is_not_examined_again(tmp_path: Path) -> None:
    stored = Result("causal", LLAMA.name, "wrong", "as stored")
    (tmp_path / f"{LLAMA.name}.json").write_text(json.dumps(stored.to_dict()), "utf-8")
    assert list(examined([LLAMA], tmp_path, workers=1, limits=Limits())) == [stored]


@pytest.mark.parametrize(
    ("examined_for_ever", "limits", "reason"),
    [
        (lambda subject: Event().wait(), Limits(seconds=0.0), "over 0 seconds"),
        (lambda subject: sum(itertools.repeat(0)), Limits(cpu=1), "over 1 seconds of a processor, or killed"),
    ],
    ids=["in all", "of a processor"],
)
def test_a_class_over_its_time_gives_up(
    examined_for_ever: Any, limits: Limits, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exam never ends, so that no machine is fast enough; the next class is reached."""
    monkeypatch.setattr(sweep, "examine", examined_for_ever)
    monkeypatch.setattr(sweep, "_prepare", lambda: None)
    stored = Result("causal", LLAMA.name, "right", "as stored")
    (tmp_path / f"{LLAMA.name}.json").write_text(json.dumps(stored.to_dict()), "utf-8")
    found = list(examined([LLAMA, BERT, BART], tmp_path, workers=1, limits=limits))
    given_up = [Result(one.family, one.name, "gave up", reason) for one in (BERT, BART)]
    assert found == [stored, *given_up]
    assert list(examined([BERT], tmp_path, workers=1, limits=limits)) == given_up[:1]


def test_the_page_counts_verdicts_and_names_every_class() -> None:
    results = [Result("causal", "A", "right"), Result("encoder", "B", "wrong", "x | y")]
    text = page(results)
    assert "| `A` | right |  |" in text
    assert "| `B` | **wrong** | x \\| y |" in text
    assert text == page(results)
