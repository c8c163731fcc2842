"""`convert`: both ways, with what the source does not store, and refusals that name the reason."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import COPIED
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import convert
from peft_reft.hub_format.errors import ReftError

GPT2 = COPIED / "models" / "gpt2"


def source(name: str, tmp_path: Path) -> Path:
    """A copy of a golden checkpoint, to be spoilt."""
    return Path(shutil.copytree(COPIED / name / "checkpoint", tmp_path / "source"))


def saved(tmp_path: Path, base: str = "llama", **config: Any) -> tuple[Path, Path, PeftModel]:
    """An adapter of ours, its base's folder, and the model."""
    model = reft_model(base, **config)
    base_model(base).save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours", tmp_path / "base", model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["loreft", "noreft", "direft", "direft_orthogonal", "consreft", "lobireft"])
def test_to_pyreft_and_back(kind: str, share: bool, tmp_path: Path) -> None:
    given = {"intervention": kind, "r": 3, "positions": "f2+l2", "share_weights": share, "component": "mlp_output"}
    ours, base, model = saved(tmp_path, layers_to_transform=[0, 2], **given)
    convert(ours, tmp_path / "theirs", to="pyreft")
    again = convert(tmp_path / "theirs", tmp_path / "again", base_model=base, positions="f2+l2", share_weights=share)
    ids = token_ids(2, 7)
    back = PeftModel.from_pretrained(base_model("llama"), again).eval()
    assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_a_bias_on_the_projection_survives_pyreft(tmp_path: Path) -> None:
    ours, base, model = saved(tmp_path, intervention="noreft", options={"add_bias": True}, positions="l1")
    convert(ours, tmp_path / "theirs", to="pyreft")
    again = convert(tmp_path / "theirs", tmp_path / "again", base_model=base, positions="l1")
    ids = token_ids(2, 7)
    back = PeftModel.from_pretrained(base_model("llama"), again).eval()
    assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [3, 32])
@pytest.mark.parametrize(("positions", "share"), [("f2+l3", True), ("f2+l3", False), ("f2", True), ("l2", True)])
@pytest.mark.parametrize("kind", ["loreft", "noreft"])
def test_to_adapters_and_back(kind: str, positions: str, share: bool, rank: int, tmp_path: Path) -> None:
    given = {"intervention": kind, "r": rank, "positions": positions, "share_weights": share, "act_fn": "relu"}
    ours, base, model = saved(tmp_path, **given)
    convert(ours, tmp_path / "theirs", to="adapters")
    again = convert(tmp_path / "theirs", tmp_path / "again", base_model=base, intervention=kind)
    config = json.loads((again / "adapter_config.json").read_text())
    assert {name: config["reft"][name] for name in given} == given
    assert config["task_type"] == "CAUSAL_LM"
    ids = token_ids(2, 7)
    back = PeftModel.from_pretrained(base_model("llama"), again).eval()
    assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("to", "config", "reason"),
    [
        ("pyreft", {"intervention": "bias"}, "intervention 'bias'"),
        ("pyreft", {"positions": "f1+l1+p[2:3]", "share_weights": False}, "more than two terms"),
        ("adapters", {"intervention": "direft"}, "reloads a saved DiReFT as NoReFT"),
        ("adapters", {"positions": "all"}, "a prefix and a suffix"),
        ("adapters", {"component": "mlp_output"}, "another component"),
        ("gguf", {"intervention": "loreft", "positions": "all"}, "one constant vector"),
        ("gguf", {"intervention": "bias", "positions": "l1"}, "at every token"),
        ("gguf", {"intervention": "bias", "positions": "all"}, "block 0"),
        ("gguf", {"intervention": "bias", "positions": "all", "component": "mlp_output"}, "output of a block"),
        ("adapters", {"interventions": [{"r": 1}, {"r": 2}]}, "several groups"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_with_the_reason(
    to: Any, config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    ours, _, _ = saved(tmp_path, **config)
    with pytest.raises(ReftError, match=reason):
        convert(ours, tmp_path / "theirs", to=to)
    assert not (tmp_path / "theirs").exists()


def test_a_constant_bias_becomes_a_control_vector(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    layers = [1, 2]
    ours, _, _ = saved(tmp_path, intervention="bias", positions="all", layers_to_transform=layers)
    path = convert(ours, tmp_path / "vector.gguf", to="gguf")
    read = gguf.GGUFReader(path)
    assert {tensor.name for tensor in read.tensors} == {"direction.1", "direction.2"}
    weights = load_file(ours / "adapter_model.safetensors")
    for tensor in read.tensors:
        shift = weights[f"base_model.model.model.layers.{tensor.name[-1]}.reft.reft_0.shift"]
        assert torch.equal(torch.tensor(tensor.data.copy()), shift)
    assert read.get_field("general.architecture").contents() == "controlvector"


def test_old_spellings_of_pyvene_are_read(tmp_path: Path) -> None:
    """Dots up to pyvene 0.1.6, `.repr.` before 0.0.8, 13 items per representation up to 0.1.2."""
    folder = source("pr_consreft_gpt2_last", tmp_path)
    for path in folder.glob("intkey_*.bin"):
        old = (
            path.name.replace("_comp_", ".repr.")
            .replace("layer_", "layer.")
            .replace("_unit_pos_nunit_", ".unit.pos.nunit.")
        )
        path.rename(folder / old)
    config = json.loads((folder / "config.json").read_text())
    config["representations"] = [entry[:13] for entry in config["representations"]]
    (folder / "config.json").write_text(json.dumps(config))
    old = convert(folder, tmp_path / "old", base_model=GPT2, positions="l1")
    new = convert(COPIED / "pr_consreft_gpt2_last/checkpoint", tmp_path / "new", base_model=GPT2, positions="l1")
    assert (old / "adapter_model.safetensors").read_bytes() == (new / "adapter_model.safetensors").read_bytes()


def test_bins_without_a_config_are_read_where_the_kind_shows(tmp_path: Path) -> None:
    folder = source("pr_direft_gpt2_last", tmp_path)
    (folder / "config.json").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    new = convert(folder, tmp_path / "new", base_model=GPT2, positions="l1")
    assert json.loads((new / "adapter_config.json").read_text())["reft"]["intervention"] == "direft_orthogonal"


def test_bins_without_a_config_need_the_kind_where_two_fit(tmp_path: Path) -> None:
    folder = source("pr_consreft_gpt2_last", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(ReftError, match="consreft or lobireft"):
        convert(folder, tmp_path / "new", base_model=GPT2, positions="l1")
    convert(folder, tmp_path / "new", base_model=GPT2, positions="l1", intervention="lobireft")


def test_adapters_does_not_say_whether_it_is_direft(tmp_path: Path) -> None:
    with pytest.raises(ReftError, match="noreft or direft"):
        convert(COPIED / "ad_noreft_gpt2_relu/checkpoint", tmp_path / "new", base_model=GPT2)


def test_an_orthonormal_projection_is_taken_for_loreft_aloud(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="LoReFT"):
        new = convert(COPIED / "ad_loreft_gpt2_batch1/checkpoint", tmp_path / "new", base_model=GPT2)
    assert json.loads((new / "adapter_config.json").read_text())["reft"]["intervention"] == "loreft"


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("pr_loreft_gpt2_f1", {}, "needs positions"),
        ("pr_loreft_gpt2_f1", {"positions": "f1+l1", "share_weights": False}, "2 terms"),
        ("pr_loreft_gpt2_short35_padlast_untied", {"positions": "f3+l5", "share_weights": True}, "share_weights=True"),
        ("pr_loreft_gpt2_short35_padlast_untied", {"positions": "f3"}, "1 terms"),
        ("ad_noreft_gpt2_relu", {"intervention": "noreft", "positions": "l9"}, "positions='l9'"),
        ("ad_noreft_gpt2_relu", {"intervention": "noreft", "act_fn": "tanh"}, "act_fn='tanh'"),
        ("pr_loreft_gpt2_f1", {"positions": "f1", "intervention": "noreft"}, "intervention='noreft'|said to be"),
    ],
)
def test_what_the_caller_says_must_agree_with_the_source(
    name: str, said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ReftError, match=reason):
        convert(COPIED / name / "checkpoint", tmp_path / "new", base_model=GPT2, **said)
    assert not (tmp_path / "new").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("/nonexistent").touch, ())


def _code(folder: Path) -> None:
    path = next(folder.glob("intkey_*"))
    path.write_bytes(pickle.dumps({"weight": Bomb()}))


def _torn(folder: Path) -> None:
    path = next(folder.glob("intkey_*"))
    path.write_bytes(path.read_bytes()[:200])


def _missing(folder: Path) -> None:
    next(folder.glob("intkey_*")).unlink()


def _edit(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _nan(folder: Path) -> None:
    path = next(folder.glob("intkey_*"))
    tensors = torch.load(path, weights_only=True)
    tensors["bias"][0] = float("nan")
    torch.save(tensors, path)


SPOILT: dict[str, tuple[Any, str]] = {
    "pickled code": (_code, "more than tensors"),
    "torn file": (_torn, "more than tensors"),
    "missing file": (_missing, "no folder of pyreft"),
    "NaN": (_nan, "NaN"),
    "unknown class": (
        lambda f: _edit(f, lambda c: c.update(intervention_types=["<class 'os.system'>"])),
        "class 'system'",
    ),
    "linked": (lambda f: _edit(f, lambda c: c["representations"][0].__setitem__(9, 0)), "no counterpart"),
    "heads": (lambda f: _edit(f, lambda c: c["representations"][0].__setitem__(2, "h.pos")), "single positions"),
    "unknown component": (
        lambda f: _edit(f, lambda c: c["representations"][0].__setitem__(1, "query_output")),
        "edits",
    ),
    "no config fields": (lambda f: _edit(f, lambda c: c.clear()), "lacks"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_source_is_refused(name: str, tmp_path: Path) -> None:
    spoil, reason = SPOILT[name]
    folder = source("pr_loreft_gpt2_f1", tmp_path)
    spoil(folder)
    with pytest.raises(ReftError, match=reason):
        convert(folder, tmp_path / "new", base_model=GPT2, positions="f1")
    assert not (tmp_path / "new").exists()


def test_a_folder_of_neither_and_a_full_target_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReftError, match="no folder of pyreft"):
        convert(tmp_path / "empty", tmp_path / "new", base_model=GPT2)
    with pytest.raises(ReftError, match="not overwritten"):
        convert(COPIED / "pr_loreft_gpt2_f1/checkpoint", COPIED, base_model=GPT2, positions="f1")
    with pytest.raises(ReftError, match="base_model"):
        convert(COPIED / "pr_loreft_gpt2_f1/checkpoint", tmp_path / "new", positions="f1")


def test_another_base_is_refused(tmp_path: Path) -> None:
    base_model("t5").save_pretrained(tmp_path / "base")
    with pytest.raises(ReftError):
        convert(
            COPIED / "pr_loreft_gpt2_f1/checkpoint", tmp_path / "new", base_model=tmp_path / "base", positions="f1"
        )
