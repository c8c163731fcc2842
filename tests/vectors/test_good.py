"""Every good vector is read on every path, and edits the hidden states as it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn

from peft_reft import MixedReftModel, set_subspaces
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.bundle import read_index
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.reader import edit_of
from peft_reft.integrations.cli import main

from .reading import ROOT, expected, folders, observe, tiny_base
from .written import all_files

NAMES = folders("good")
BUNDLES = [name for name in NAMES if name.startswith("bundle")]
ALONE = [name for name in NAMES if name not in BUNDLES]


def test_the_committed_files_are_those_that_are_written() -> None:
    written = all_files()
    found = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in ROOT.rglob("*") if path.is_file()}
    assert sorted(found) == sorted(written)
    assert [name for name in found if found[name] != written[name]] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_reader_finds_what_the_vector_says(name: str) -> None:
    said = expected(ROOT / "good" / name)["adapters"]
    members = read_index(ROOT / "good" / name)
    assert (
        members is None
        if name in ALONE
        else {m.name: m.folder for m in members} == {member: one["folder"] for member, one in said.items()}
    )
    for one in said.values():
        if one["kind"] != "reft":
            continue
        checked = check_folder(ROOT / "good" / name / one["folder"])
        assert checked is not None
        assert {n: info.to_json() for n, info in checked.manifest.tensors.items()} == one["tensors"]
        assert len(checked.groups) == len(one["groups"])
        for group, wanted in zip(checked.groups, one["groups"], strict=True):
            assert [str(term) for term in group.positions.terms] == wanted["terms"]
            assert group.signature.with_defaults(group.options or {}) == wanted["options"]
            for field in ("r", "intervention", "component", "turns", "share_weights", "dropout", "act_fn"):
                assert getattr(group, field) == wanted[field]
        places = [edit_of(tensor) for tensor in one["tensors"]]
        wanted = {(u["module"], u["unit"], tensor) for u in one["units"] for tensor in u["tensors"]}
        assert {place for place in places if place is not None} == wanted
        assert [t for t, place in zip(one["tensors"], places, strict=True) if place is None] == one["beside"]


@pytest.mark.parametrize("name", NAMES)
def test_validate_finds_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(ROOT / "good" / name)]) == 0, capsys.readouterr()


def assert_edits(case: dict[str, Any], seen: dict[str, torch.Tensor]) -> None:
    assert set(seen) == set(case["edited"])
    for place, wanted in case["edited"].items():
        torch.testing.assert_close(seen[place], torch.tensor(wanted, dtype=torch.float64), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ALONE)
def test_peft_loads_it_and_it_edits_as_the_vector_says(name: str) -> None:
    folder = ROOT / "good" / name
    for case in expected(folder)["cases"]:

        def load(base: nn.Module, case: dict[str, Any] = case) -> nn.Module:
            model = PeftModel.from_pretrained(base, str(folder))
            if case["subspaces"] is not None:
                set_subspaces(model, "default", case["subspaces"])
            return model

        assert_edits(case, observe(tiny_base(), case, load))


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_loads_whole_and_each_of_its_edits_alone(name: str) -> None:
    folder = ROOT / "good" / name
    for edit, cases in expected(folder)["cases_of"].items():
        for case in cases:

            def whole(base: nn.Module, edit: str = edit) -> nn.Module:
                model = MixedReftModel.from_pretrained(base, str(folder))
                model.set_adapter(["default", edit])
                return model

            def alone(base: nn.Module, edit: str = edit) -> nn.Module:
                return PeftModel.from_pretrained(base, str(folder), subfolder=f"reft/{edit}")

            for load in (whole, alone):
                assert_edits(case, observe(tiny_base(), case, load))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_edits_of_a_bundle_add(name: str) -> None:
    folder = ROOT / "good" / name
    case = expected(folder)["case_of_all"]

    def load(base: nn.Module) -> nn.Module:
        model = MixedReftModel.from_pretrained(base, str(folder))
        model.set_adapter(["default", *case["claimed"]])
        return model

    assert_edits(case, observe(tiny_base(), case, load))


@pytest.mark.parametrize("name", BUNDLES)
def test_stock_peft_reads_the_lora_at_the_root(name: str) -> None:
    model = PeftModel.from_pretrained(tiny_base(), str(ROOT / "good" / name))
    assert model.peft_config["default"].peft_type == "LORA"


@pytest.fixture
def beside_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the base under the name that the vectors' configs give."""
    tiny_base().save_pretrained(tmp_path / "tiny-base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OTHER_TASKS = {"task_of_no_name", "task_without_completion"}
"""Vectors of which PEFT's own AutoPeftModelForCausalLM says that they are for another class, or for none."""


def test_auto_peft_reads_every_vector_but_one(beside_its_base: Path) -> None:
    for name in sorted({*ALONE} - OTHER_TASKS):
        shutil.copytree(ROOT / "good" / name, beside_its_base / name)
        if name == "higher_minor":  # AutoPeft asks the config alone, which says no features
            with pytest.raises(ReftError) as caught:
                AutoPeftModelForCausalLM.from_pretrained(f"./{name}")
            assert caught.value.code == "config.version"
        else:
            AutoPeftModelForCausalLM.from_pretrained(f"./{name}")


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("higher_minor", "trainable_tokens")])
def test_transformers_load_adapter_edits_as_the_vector_says(name: str) -> None:
    folder = ROOT / "good" / name
    case = expected(folder)["cases"][0]

    def load(base: Any) -> nn.Module:
        base.load_adapter(str(folder))
        return base  # type: ignore[no-any-return]

    assert_edits(case, observe(tiny_base(), case, load))
