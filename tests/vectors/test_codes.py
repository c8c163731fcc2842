"""Every code of SPEC.md's table is triggered: by a vector, a hostile folder, or a test here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hostile.threats import THREATS
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.listing import check_members, list_members
from peft_reft.hub_format.migrations import Migration, migrate

from .adapters import BASE
from .bad_tensors import PICKLE
from .folder import CONFIG, INDEX, MANIFEST, WEIGHTS
from .reading import ROOT, expected, folders, tiny_base

SPEC = (files("peft_reft.hub_format") / "SPEC.md").read_text(encoding="utf-8")
TABLE = SPEC[SPEC.index("## 14. Error codes") :]
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| `")]
SAYS = {code: (row[2].split(", "), row[3].split(", ")) for row in ROWS for code in re.findall(r"`([a-z_.]+)`", row[0])}
CODES = set(SAYS)
FILES = {None: "null", CONFIG: "config", WEIGHTS: "weights", MANIFEST: "manifest", INDEX: "index", PICKLE: "pickle"}
GOOD = ROOT / "good"


def mixed() -> MixedReftModel:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    return MixedReftModel.from_configs(tiny_base(), {"default": lora, "edit": ReftConfig(r=2)})


def other_member(folder: Path) -> object:
    return mixed().load_adapter(str(GOOD / "bundle_of_four"), "edit")


def other_config(folder: Path) -> object:
    return mixed().load_adapter(str(GOOD / "kind_bias"), "edit")


def half_precision(folder: Path) -> object:
    from hostile import folders as f

    made = f.good(folder / "adapter")
    f.each(".bias", lambda t: t.fill_(1e30))(made)
    from contract.tiny import base_model

    return PeftModel.from_pretrained(base_model("llama").half(), str(made), autocast_adapter_dtype=False)


def other_size(folder: Path) -> object:
    base = LlamaForCausalLM(LlamaConfig(**{**BASE, "hidden_size": 16}))
    return PeftModel.from_pretrained(base, str(GOOD / "tied"))


def no_weights(folder: Path) -> object:
    shutil.copy(GOOD / "tied" / "adapter_config.json", folder)
    return check_members(folder)


def no_type(folder: Path) -> object:
    (folder / "adapter_config.json").write_text("{}")
    return list_members(folder)


def no_plan(folder: Path) -> object:
    (folder / ".reft_commit").write_text("{}")
    return settle(folder)


def broken_step(folder: Path) -> object:
    return migrate({"spec_version": "0.9"}, "reft", table={"0.9": Migration("1.0", reft=lambda stored: stored["r"])})


TESTED_HERE: dict[str, Callable[[Path], object]] = {
    "adapter.kind": no_type,
    "adapter.missing": list_members,
    "base.hidden_size": other_size,
    "load.config": other_config,
    "load.finite": half_precision,
    "load.members": other_member,
    "migration.failed": broken_step,
    "save.plan": no_plan,
    "weights.missing": no_weights,
}


TESTED_ELSEWHERE = {
    "base.tokenizer": "saving/test_base_identity.py",
    "save.busy": "saving/test_writing.py",
    "save.interrupted": "saving/test_killed.py",
    "save.place": "saving/test_writing.py",
    "site.tower": "runtime/test_vision.py",
}
"""Code → the file of the tests that name it."""


@pytest.mark.parametrize("code", sorted(TESTED_HERE))
def test_codes_that_no_folder_alone_triggers(code: str, tmp_path: Path) -> None:
    with pytest.raises(ReftError) as caught:
        TESTED_HERE[code](tmp_path)
    assert caught.value.code == code, caught.value


def test_every_code_of_the_table_is_triggered_and_every_vectors_code_stands_there() -> None:
    vectors = {expected(ROOT / "bad" / name)["code"] for name in folders("bad")}
    hostile = {threat.code for threat in THREATS.values()} | set(TESTED_ELSEWHERE)
    tests = Path(__file__).parents[1]
    of_hub = "".join(path.read_text() for path in sorted((tests / "hub").glob("test_*.py")))
    hostile |= {code for code in CODES if code.startswith("hub.") and code in of_hub}
    assert [code for code, file in TESTED_ELSEWHERE.items() if code not in (tests / file).read_text()] == []
    assert len(CODES) > 40
    assert CODES - vectors - hostile - set(TESTED_HERE) == set()
    assert (vectors | hostile | set(TESTED_HERE)) - CODES == set()


def test_every_refusal_of_the_format_has_a_code_of_the_table() -> None:
    """Codes that the floor gives; those of the Hub, of routers, of writing and of importers are no reader's."""
    elsewhere = ("hub.", "import.", "export.", "push.", "source.", "pull.", "router.", "save.members", "save.name")
    floor = Path(str(files("peft_reft.hub_format")))
    found = {code for path in floor.glob("*.py") for code in re.findall(r'code="([a-z_.]+)"', path.read_text())}
    assert {code for code in found if not code.startswith(elsewhere)} - CODES == set()


def test_file_and_stage_of_every_vector_are_those_of_the_table() -> None:
    for name in folders("bad"):
        said = expected(ROOT / "bad" / name)
        blamed, stages = SAYS[said["code"]]
        assert said["stage"] in stages, name
        assert FILES[said["file"]] in blamed or (blamed == ["it"] and said["file"] is not None), name
        if len(stages) > 1 and said["file"] != INDEX:
            assert (said["file"] is None) == (said["stage"] == "base"), name
