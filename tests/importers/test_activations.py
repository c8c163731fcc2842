"""Activations through `convert`: whatever name a source has for one, and a name that the target knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from parity.golden import COPIED
from peft import PeftModel
from torch.testing import assert_close

from contract.tiny import base_model, token_ids
from peft_reft import convert
from peft_reft.hub_format.errors import ReftError

from .test_convert import GPT2, saved

KNOWN_TO_ADAPTERS = {
    "gelu": "gelu",
    "gelu_10": "gelu_10",
    "gelu_tanh": "gelu_new",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "tanh": "tanh",
}
"""Ours → a name in the `ACT2FN` of transformers 4.57.6, which adapters 1.3 is pinned to (its activations.py)."""


def of_adapters(name: object, folder: Path) -> Path:
    """A folder of the adapters library whose config names an activation."""
    shutil.copytree(COPIED / "ad_noreft_gpt2_relu/checkpoint", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["config"]["non_linearity"] = name
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def stored(folder: Path) -> tuple[Any, Any]:
    reft = json.loads((folder / "adapter_config.json").read_text())["reft"]
    return reft["act_fn"], reft["spec_version"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu_new", ("gelu_tanh", "1.0")),
        ("Swish", ("silu", "1.0")),
        ("leakyrelu", ("leaky_relu", "1.0")),
        ("linear", (None, "1.0")),
        ("quick_gelu", ("quick_gelu", "1.1")),
        ("RELU2", ("relu2", "1.1")),
    ],
)
def test_names_of_the_adapters_library_are_read(name: str, expected: Any, tmp_path: Path) -> None:
    folder = of_adapters(name, tmp_path / "theirs")
    assert stored(convert(folder, tmp_path / "ours", base_model=GPT2, intervention="noreft")) == expected


@pytest.mark.parametrize(("name", "reason"), [("prelu", "trained"), ("os.system", "quick_gelu"), (7, "quick_gelu")])
def test_an_activation_that_is_none_here_is_refused(name: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ReftError, match=reason) as caught:
        convert(of_adapters(name, tmp_path / "theirs"), tmp_path / "ours", base_model=GPT2, intervention="noreft")
    assert (caught.value.code, caught.value.file) == ("import.malformed", "adapter_config.json")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("act_fn", ["gelu_pytorch_tanh", "quick_gelu", "linear"])
def test_what_the_caller_says_of_a_pyreft_folder_has_any_name(act_fn: str, tmp_path: Path) -> None:
    given = COPIED / "pr_loreft_gpt2_f1/checkpoint"
    made = convert(given, tmp_path / "ours", base_model=GPT2, positions="f1", act_fn=act_fn)
    assert stored(made)[0] == {"gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "linear": None}[act_fn]


def test_another_name_of_what_the_source_says_agrees_with_it(tmp_path: Path) -> None:
    folder = of_adapters("gelu_new", tmp_path / "theirs")
    said: dict[str, Any] = {"base_model": GPT2, "intervention": "noreft"}
    assert stored(convert(folder, tmp_path / "ours", act_fn="gelu_fast", **said))[0] == "gelu_tanh"
    with pytest.raises(ReftError, match="act_fn='swish'"):
        convert(folder, tmp_path / "other", act_fn="swish", **said)


@pytest.mark.parametrize(("ours", "theirs"), KNOWN_TO_ADAPTERS.items())
def test_the_adapters_library_gets_a_name_that_it_knows(ours: str, theirs: str, tmp_path: Path) -> None:
    folder, base, model = saved(tmp_path, positions="l2", act_fn=ours)
    convert(folder, tmp_path / "theirs", to="adapters")
    config = json.loads((tmp_path / "theirs/adapter_config.json").read_text())["config"]
    assert config["non_linearity"] == theirs
    again = convert(tmp_path / "theirs", tmp_path / "again", base_model=base, intervention="loreft")
    back = PeftModel.from_pretrained(base_model("llama"), again).eval()
    ids = token_ids(2, 7)
    assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("act_fn", ["hardswish", "sqrtsoftplus"])
def test_what_the_adapters_library_does_not_know_is_refused(act_fn: str, tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path, positions="l2", act_fn=act_fn)
    with pytest.raises(ReftError, match=act_fn) as caught:
        convert(folder, tmp_path / "theirs", to="adapters")
    assert caught.value.code == "export.cannot_hold"


def test_pyreft_stores_no_activation_and_that_is_said_with_its_name_there(tmp_path: Path) -> None:
    folder, base, model = saved(tmp_path, positions="l2", act_fn="swish")
    with pytest.warns(UserWarning, match=r"ACT2FN\['silu'\]"):
        convert(folder, tmp_path / "theirs", to="pyreft")
    again = convert(tmp_path / "theirs", tmp_path / "again", base_model=base, positions="l2", act_fn="swish")
    back = PeftModel.from_pretrained(base_model("llama"), again).eval()
    ids = token_ids(2, 7)
    assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
