"""A user's own kind: under twenty lines, saved and loaded like ours; where it is not registered, the error says so."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig, register_intervention
from peft_reft.hub_format.errors import ConfigError, UnsupportedVersionError
from peft_reft.hub_format.kinds import _KINDS, Option, count

OWN = '''
import torch
from peft_reft import Intervention, register_intervention


@register_intervention("scaled_direction", version=1)
class ScaledDirection(Intervention):
    """h + s (h·w) w: stretch h along one learned direction."""

    tensors = {"direction": ("hidden",), "strength": ("one",)}

    def identity(self):
        torch.nn.init.normal_(self.direction)
        torch.nn.init.zeros_(self.strength)

    def edit_delta(self, hidden):
        w = self.parameter("direction", hidden)
        return self.parameter("strength", hidden) * (hidden @ w)[..., None] * w
'''

LOAD = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
if len(sys.argv) > 4: __import__(sys.argv[4])
import peft_reft
from contract.tiny import base_model, token_ids
from peft import PeftModel
model = PeftModel.from_pretrained(base_model("llama"), sys.argv[3]).eval()
torch.save(model(token_ids(2, 7)).logits, f"{sys.argv[3]}/logits.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with the kind, and an adapter of that kind saved beside it."""
    found: Path = tmp_path_factory.mktemp("own")
    (found / "my_kinds.py").write_text(OWN)
    sys.path.insert(0, str(found))
    __import__("my_kinds")
    sys.path.remove(str(found))
    model = reft_model("llama", intervention="scaled_direction", positions="f2+l2")
    torch.save(model(token_ids(2, 7)).logits, found / "expected.pt")
    model.save_pretrained(found / "adapter")
    return found


def load(folder: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", LOAD, str(tests), str(folder), str(folder / "adapter"), *modules]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_it_takes_under_twenty_lines() -> None:
    assert len([line for line in OWN.splitlines() if line]) < 20


def test_it_starts_as_the_identity_and_learns(folder: Path) -> None:
    model = reft_model("llama", intervention="scaled_direction", positions="f2", init_weights=None)
    ids = token_ids(2, 7)
    assert torch.equal(model(ids).logits, base_model("llama")(ids).logits)
    model(ids).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "reft_" in n)


def test_a_fresh_process_that_imports_it_gives_the_same_output(folder: Path) -> None:
    run = load(folder, "my_kinds")
    assert run.returncode == 0, run.stderr[-2000:]
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert torch.equal(torch.load(folder / "adapter/logits.pt", weights_only=True), expected)


def test_where_it_is_not_registered_the_error_names_it_and_what_to_import(folder: Path) -> None:
    run = load(folder)
    assert run.returncode != 0
    assert "scaled_direction" in run.stderr
    assert "import my_kinds" in run.stderr


def test_the_module_s_name_is_shown_and_never_imported(folder: Path, tmp_path: Path) -> None:
    stored = json.loads((folder / "adapter/adapter_config.json").read_text())["reft"]
    assert stored["kinds"] == {"scaled_direction": {"version": 1, "module": "my_kinds"}}
    stored["kinds"] = {"unheard": {"version": 1, "module": "antigravity"}}
    with pytest.raises(UnsupportedVersionError, match=r"unheard.*import antigravity"):
        ReftConfig(peft_type="REFT", reft=stored)
    assert "antigravity" not in sys.modules
    for module in ("a b", "x\n", "", 3, "m" * 300):
        stored["kinds"] = {"unheard": {"version": 1, "module": module}}
        with pytest.raises(ConfigError, match="malformed"):
            ReftConfig(peft_type="REFT", reft=stored)


def test_another_version_is_refused(folder: Path) -> None:
    stored = json.loads((folder / "adapter/adapter_config.json").read_text())["reft"]
    stored["kinds"]["scaled_direction"]["version"] = 2
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        ReftConfig(peft_type="REFT", reft=stored)


def test_what_is_no_name_is_shown_in_short() -> None:
    with pytest.raises(UnsupportedVersionError, match="not a registered intervention") as caught:
        ReftConfig(intervention={"tensors": ["x"] * 1000})
    assert len(str(caught.value)) < 500


def test_a_name_stands_for_one_kind() -> None:
    from peft_reft.interventions.bias import Bias

    with pytest.raises(ConfigError, match="registered already"):
        register_intervention("loreft")(type("Other", (Bias,), {}))


def test_a_registration_may_be_repeated(folder: Path) -> None:
    cls = sys.modules["my_kinds"].ScaledDirection
    assert register_intervention("scaled_direction")(cls) is cls


def test_own_options_are_checked() -> None:
    from peft_reft.interventions.bias import Bias

    name = "own_with_options"
    table = {"options_table": None, "option_table": {"times": count(2), "any": Option(None, lambda value: None)}}
    register_intervention(name)(type("Own", (Bias,), table))
    try:
        ReftConfig(intervention=name, options={"times": 3, "any": "thing"})
        with pytest.raises(ConfigError, match="1 or more"):
            ReftConfig(intervention=name, options={"times": 0})
    finally:
        del _KINDS[name]


def test_the_docs_show_this_kind() -> None:
    page = Path(__file__).parents[2] / "docs" / "parameters.md"
    assert textwrap.dedent(OWN).strip() in page.read_text(), inspect.cleandoc("keep the two in step")
