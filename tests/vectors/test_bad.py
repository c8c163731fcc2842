"""Every bad vector is refused on every path, by the code and the file that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel

from peft_reft import MixedReftModel
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.listing import check_members
from peft_reft.integrations.cli import main

from .reading import ROOT, expected, folders, tiny_base

NAMES = folders("bad")
BUNDLES = [name for name in NAMES if name.startswith("bundle_")]
ALONE = [name for name in NAMES if name not in BUNDLES]
FOREIGN = (RecursionError, TypeError, ValueError, KeyError, OSError)
PEFT_FIRST = {"json_no_utf8", "json_byte_order_mark", "json_trailing_comma", "json_comment", "json_control_character"}
PEFT_FIRST |= {"json_many_digits", "envelope_peft_type"}
"""PEFT parses the config for its `peft_type` before it knows whose it is; these it refuses in its own words."""
OF_THE_MANIFEST = {"version_manifest_only", "version_number", "order_version_before_manifest"}
OTHER_TUNER = {"envelope_peft_type"}
"""PEFT asks another tuner, no code of ours runs; LoRA ignores `reft` and finds none of its tensors."""


VALIDATE_SAYS = {
    "bundle_file_gone": ("manifest", "reft_manifest.json"),
    "bundle_kind": ("weights.missing", "adapter_model.safetensors"),
    "envelope_peft_type": ("config.value", "adapter_config.json"),
}
"""`validate` looks at each member before the files that the index lists; what says LORA is looked at as one."""


def refused(load: Callable[[], object], said: dict[str, Any], *, file: bool = True) -> None:
    with pytest.raises(ReftError) as caught:
        load()
    error = caught.value
    assert error.code == said["code"], error
    if file:
        assert error.file == said["file"], error
    assert error.rule or error.fix, error
    assert len(str(error)) < 1500


def test_the_vectors_name_every_kind_of_blame() -> None:
    assert {expected(ROOT / "bad" / name)["stage"] for name in NAMES} == {"folder", "base"}


@pytest.mark.parametrize("name", ALONE)
def test_the_reader_refuses_it(name: str) -> None:
    folder, said = ROOT / "bad" / name, expected(ROOT / "bad" / name)
    if said["stage"] == "base":
        assert check_folder(folder) is not None
    else:
        refused(lambda: check_folder(folder), said)


@pytest.mark.parametrize("name", NAMES)
def test_validate_names_code_and_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = expected(ROOT / "bad" / name)
    status = main(["validate", str(ROOT / "bad" / name), "--json"])
    printed = json.loads(capsys.readouterr().out)
    if said["stage"] == "base" and said["code"] != "load.rank":
        assert (status, printed["problems"]) == (0, [])
    else:
        (problem,) = printed["problems"]
        code, file = VALIDATE_SAYS.get(name, (said["code"], said["file"]))
        assert (status, problem["code"], problem["file"]) == (1, code, file)


@pytest.mark.parametrize("name", ALONE)
def test_peft_refuses_it_as_a_new_model_and_as_a_second_adapter(name: str) -> None:
    folder, said = str(ROOT / "bad" / name), expected(ROOT / "bad" / name)
    if name in PEFT_FIRST - OTHER_TUNER:
        with pytest.raises(FOREIGN):
            PeftModel.from_pretrained(tiny_base(), folder)
        return
    if name in OTHER_TUNER:
        return
    refused(lambda: PeftModel.from_pretrained(tiny_base(), folder), said, file=said["stage"] == "folder")
    model = PeftModel.from_pretrained(tiny_base(), str(ROOT / "good" / "tied"))
    refused(lambda: model.load_adapter(folder, "second"), said, file=said["stage"] == "folder")
    assert said["code"].startswith("load.") or list(model.peft_config) == ["default"]


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_refused_by_our_load_and_before_a_push(name: str) -> None:
    folder, said = ROOT / "bad" / name, expected(ROOT / "bad" / name)
    refused(lambda: MixedReftModel.from_pretrained(tiny_base(), str(folder)), said)
    of_the_lora = said["code"] in ("bundle.pattern", "config.value", "tensors.finite", "tensors.unfit")
    if said["stage"] == "folder" and not of_the_lora:  # a LoRA alone is stock PEFT's business
        refused(lambda: check_members(folder), said)


def test_auto_peft_refuses_every_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is the same; the file is not always known, since AutoPeft asks the config alone first."""
    tiny_base().save_pretrained(tmp_path / "tiny-base")
    monkeypatch.chdir(tmp_path)
    for name in ALONE:
        if name in OTHER_TUNER:
            continue
        said = expected(ROOT / "bad" / name)
        shutil.copytree(ROOT / "bad" / name, tmp_path / name)
        with pytest.raises(FOREIGN) as caught:
            AutoPeftModelForCausalLM.from_pretrained(f"./{name}")
        if name in CONFIG_FIRST:
            assert getattr(caught.value, "code", None) == CONFIG_FIRST[name], (name, caught.value)
        elif not (said["code"].startswith("json.") and said["file"] == "adapter_config.json"):  # PEFT's own parser
            assert getattr(caught.value, "code", None) == said["code"], (name, caught.value)


CONFIG_FIRST: dict[str, str | None] = {
    "envelope_self": None,
    "version_minor_feature": "config.version",
    "version_minor_field": "config.version",
}
"""Where no manifest is seen, a higher minor version is refused as such; a key `self` breaks PEFT's own call."""
DROPPED = {"envelope_kinds", "envelope_tensors"}
"""Keys that PEFT knows nothing of: with a config alone it leaves them out before any code of ours sees them."""
CONFIG_ALONE = ("config.", "kind.", "positions.", "site.", "base.")
"""What transformers' `load_adapter` can refuse: it shows the tuner the config, and no file beside it."""


@pytest.mark.parametrize(
    "name", [name for name in ALONE if expected(ROOT / "bad" / name)["code"].startswith(CONFIG_ALONE)]
)
def test_transformers_load_adapter_refuses_what_the_config_says(name: str) -> None:
    folder, said = ROOT / "bad" / name, expected(ROOT / "bad" / name)
    if name in {*OTHER_TUNER, *OF_THE_MANIFEST, *DROPPED} or said["code"].startswith("base."):
        return
    base = tiny_base()
    with pytest.raises(FOREIGN) as caught:
        base.load_adapter(str(folder))
    assert getattr(caught.value, "code", None) == CONFIG_FIRST.get(name, said["code"]), caught.value
