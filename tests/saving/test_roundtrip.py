"""Configs and adapters come back as they were saved, in processes of their own too; anything else is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from contract.features import load_adapter_brings_heads
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import (
    AdapterLoadError,
    IntegrityError,
    ManifestError,
    ReftError,
    UnsupportedVersionError,
)
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME
from peft_reft.hub_format.schema import FIELDS

TASK = {"task_type": "CAUSAL_LM"}
CASES: dict[str, dict[str, Any]] = {
    f"{kind}_{'tied' if tied else 'untied'}": {"intervention": kind, "positions": "f2+l2", "share_weights": tied}
    for kind in ("loreft", "direft")
    for tied in (True, False)
}
VALUES: dict[str, dict[str, Any]] = {
    "r": {"r": 7},
    "intervention": {"intervention": "direft"},
    "options": {"intervention": "reft_r1", "r": 8, "options": {"topk": 2}},
    "layers_to_transform": {"layers_to_transform": [0, -1]},
    "component": {"component": "mlp_output"},
    "positions": {"positions": "f7+l7-p[2:4]"},
    "turns": {"turns": "each"},
    "share_weights": {"positions": "f1+l1", "share_weights": False},
    "dropout": {"dropout": 0.25},
    "act_fn": {"intervention": "direft", "act_fn": "gelu"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "layers_pattern": {"layers_pattern": ["layers"]},
    "init_weights": {"init_weights": "paper"},
    "interventions": {"interventions": [{"r": 2}, {"intervention": "bias", "layers_to_transform": [1]}]},
    "subspaces": {"subspaces": {"tone": [0, 2], "topic": [2, 4]}},
    "special_tokens": {
        "positions": "tok(<s>)+l2",
        "special_tokens": {"tokenizer": "sha256:" + "5a" * 32, "ids": {"<s>": 1}},
    },
    "spec_version": {"spec_version": "1.0"},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
}
LOAD = """
import json, sys, warnings
from pathlib import Path
import torch
import peft_reft
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

root = Path(sys.argv[1])

def base():
    return AutoModelForCausalLM.from_pretrained(root / "base").eval()

def by_name(folder):
    model = PeftModel.from_pretrained(base(), folder, adapter_name="other")
    assert list(model.peft_config) == ["other"]
    return model

def by_transformers(folder):
    model = base()
    model.load_adapter(str(folder))
    return model

def beside_another(folder):
    model = PeftModel.from_pretrained(base(), root / sorted(names)[0], adapter_name="first")
    model.load_adapter(str(folder), "second")
    model.set_adapter("second")
    return model

routes = {
    "PeftModel": lambda folder: PeftModel.from_pretrained(base(), folder),
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained,
    "load_adapter": by_transformers,
    "another name": by_name,
    "beside another": beside_another,
    "low_cpu_mem_usage": lambda folder: PeftModel.from_pretrained(base(), folder, low_cpu_mem_usage=True),
    "trainable": lambda folder: PeftModel.from_pretrained(base(), folder, is_trainable=True),
}
ids = torch.load(root / "ids.pt")
names = json.loads(sys.argv[2])
for name in names:
    expected = torch.load(root / f"{name}.pt")
    for route, load in routes.items():
        with torch.no_grad():
            found = load(root / name).eval()(input_ids=ids).logits
        assert torch.equal(found, expected), (name, route)
print("loaded", len(names) * len(routes))
"""


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(2, 9) if ids is None else ids).logits


def saved(folder: Path, *, seed: int = 0, **fields: Any) -> Path:
    reft_model(
        "llama", base=base_model("llama"), seed=seed, **{"positions": "f2+l2", "r": 2, **fields}
    ).save_pretrained(str(folder))
    return folder


def test_there_is_a_case_for_every_field() -> None:
    assert {*FIELDS, "modules_to_save", "trainable_token_indices"} == VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
def test_a_config_comes_back_field_by_field(tmp_path: Path, name: str) -> None:
    config = ReftConfig(**TASK, base_model_name_or_path="me/base", revision="v1", **VALUES[name])
    config.save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.to_dict() == stored
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_NAME]  # no weights, no manifest
    for reader in (ReftConfig, PeftConfig):
        loaded = reader.from_pretrained(str(tmp_path))
        assert type(loaded) is ReftConfig
        # PEFT's own rule: a stored adapter is loaded for inference
        assert {**loaded.to_dict(), "inference_mode": False} == {**stored, "inference_mode": False}
        for field in VALUES:
            assert getattr(loaded, field) == getattr(config, field), field
        assert loaded.groups() == config.groups()


def test_a_fresh_process_computes_the_same_bits(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path / "base")
    ids = token_ids(2, 9)
    torch.save(ids, tmp_path / "ids.pt")
    plain = logits(base_model("llama"), ids)
    for name, fields in CASES.items():
        base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        model = reft_model("llama", base=base, **fields)
        torch.save(expected := logits(model, ids), tmp_path / f"{name}.pt")
        assert not torch.equal(expected, plain)
        model.save_pretrained(str(tmp_path / name))
        check_folder(tmp_path / name)
    command = [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(list(CASES))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert f"loaded {7 * len(CASES)}" in done.stdout


def test_several_adapters_are_saved_side_by_side(tmp_path: Path) -> None:
    model = reft_model("llama", positions="f2")
    model.add_adapter("second", ReftConfig(**TASK, intervention="direft", positions="l3", init_weights=False))
    expected = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = logits(model)
    model.save_pretrained(str(tmp_path))
    folders = {"default": tmp_path, "second": tmp_path / "second"}
    for name, folder in folders.items():
        assert {CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME} <= {path.name for path in folder.iterdir()}
        check_folder(folder)
        alone = PeftModel.from_pretrained(base_model("llama"), str(folder))
        assert torch.equal(logits(alone), expected[name])
    subfolder = PeftModel.from_pretrained(base_model("llama"), str(tmp_path), subfolder="second")
    assert torch.equal(logits(subfolder), expected["second"])


def test_a_head_is_saved_beside_the_edits(tmp_path: Path) -> None:
    def base() -> hf.PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = hf.LlamaConfig(vocab_size=64, pad_token_id=0, num_labels=3, initializer_range=0.3, **sizes)
            return hf.LlamaForSequenceClassification(config).eval()

    model = get_peft_model(base(), ReftConfig(task_type="SEQ_CLS", positions="f2+l2", init_weights=False))
    head = model.base_model.model.score.modules_to_save["default"].weight
    with torch.no_grad():
        head.add_(1.5)
    expected = logits(model)
    assert expected.shape == (2, 3)
    model.save_pretrained(str(tmp_path))
    names = load_file(tmp_path / WEIGHTS_NAME).keys()
    assert "base_model.model.score.weight" in names
    loaded = PeftModel.from_pretrained(base(), str(tmp_path))
    assert torch.equal(logits(loaded), expected)
    plain = base()
    plain.load_adapter(str(tmp_path))
    if load_adapter_brings_heads():
        assert torch.equal(logits(plain), expected)
    else:
        with pytest.raises(AdapterLoadError, match="'score', which the config saves in full, was not loaded"):
            logits(plain)


def test_a_head_that_was_not_loaded_is_refused(tmp_path: Path) -> None:
    """As older versions of transformers did in `load_adapter`: they brought the edits alone."""

    def base() -> hf.PreTrainedModel:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return hf.LlamaForSequenceClassification(hf.LlamaConfig(vocab_size=64, pad_token_id=0, **sizes)).eval()

    def loaded(*, head: bool, off_by: float = 0.0) -> hf.PreTrainedModel:
        plain = inject_adapter_in_model(PeftConfig.from_pretrained(str(tmp_path)), base())
        state = plain.state_dict()
        for name, tensor in load_file(tmp_path / WEIGHTS_NAME).items():
            path, _, last = name.removeprefix("base_model.model.").rpartition(".")
            if head or ".reft." in name:
                copy = ".reft." not in name
                place = f"{path}.modules_to_save.default.{last}" if copy else f"{path}.default.{last}"
                state[place] = tensor + off_by * copy
        plain.load_state_dict(state)
        return plain

    model = get_peft_model(base(), ReftConfig(task_type="SEQ_CLS", positions="f2+l2", init_weights=False))
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(loaded(head=False)), logits(model))  # nothing was trained: it is the head
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.add_(1.5)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(loaded(head=True)), logits(model))
    with pytest.raises(AdapterLoadError, match="'score', which the config saves in full, was not loaded"):
        logits(loaded(head=False))
    with pytest.raises(IntegrityError, match=r"score\.weight"):  # of another file than the config's
        logits(loaded(head=True, off_by=1e-3))
    kept = loaded(head=True).to(torch.float64)  # no bytes of the file's to be compared
    assert torch.allclose(logits(kept), logits(model).double(), atol=1e-5)


def test_a_second_save_into_the_same_folder_replaces_the_first(tmp_path: Path) -> None:
    saved(tmp_path, intervention="direft", share_weights=False)
    model = reft_model("llama", positions="l1", r=3)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path))
    assert loaded.peft_config["default"].intervention == "loreft"
    assert torch.equal(logits(loaded), logits(model))
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if ".reft_" in n):
            parameter.mul_(1.25)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), str(tmp_path))), logits(model))


def test_saving_a_loaded_adapter_gives_the_same_files(tmp_path: Path) -> None:
    saved(tmp_path / "first")
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path / "first"))
    loaded.save_pretrained(str(tmp_path / "again"))
    first, again = (tmp_path / name / WEIGHTS_NAME for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_pickled_weights_work_and_replace_safetensors(tmp_path: Path) -> None:
    saved(tmp_path, intervention="direft")
    model = reft_model("llama", positions="f2")
    model.save_pretrained(str(tmp_path), safe_serialization=False)
    assert {path.name for path in tmp_path.iterdir()} >= {PICKLE_NAME, MANIFEST_NAME}
    assert not (tmp_path / WEIGHTS_NAME).exists()
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    model.save_pretrained(str(tmp_path))
    assert not (tmp_path / PICKLE_NAME).exists()
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), str(tmp_path))), logits(model))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True))


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(bytes(data))


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[:-4])


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def extra(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if ".layers.0." in name)
    tensors[name.replace(".layers.0.", ".layers.1.").replace("reft_0", "reft_5")] = tensors[name].clone()


def link(folder: Path) -> None:
    moved = (folder / WEIGHTS_NAME).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS_NAME).symlink_to(moved)


def swap(folder: Path) -> None:
    other = saved(folder.parent / "other", seed=5)
    shutil.copyfile(other / WEIGHTS_NAME, folder / WEIGHTS_NAME)


def config_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / CONFIG_NAME, change)


def manifest_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / MANIFEST_NAME, change)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[ReftError]]] = {
    "a flipped bit in the weights": (flip, IntegrityError),
    "truncated weights": (truncate, ReftError),
    "no manifest": (lambda folder: (folder / MANIFEST_NAME).unlink(), ManifestError),
    "a manifest with another digest": (
        manifest_of(lambda m: m["files"][0].update(sha256="0" * 64)),
        IntegrityError,
    ),
    "a manifest with another tensor": (manifest_of(lambda m: m["tensors"].popitem()), ReftError),
    "a manifest of another major version": (
        manifest_of(lambda m: m.update(spec_version="2.0")),
        UnsupportedVersionError,
    ),
    "a manifest with an unknown field": (manifest_of(lambda m: m.update(more=1)), ManifestError),
    "a manifest that is no JSON": (lambda folder: (folder / MANIFEST_NAME).write_text("{"), ReftError),
    "a config with other positions": (config_of(lambda c: c["reft"].update(positions="f9")), ReftError),
    "a config of another rank": (config_of(lambda c: c["reft"].update(r=3)), ReftError),
    "a config with an unknown field": (config_of(lambda c: c["reft"].update(more=1)), ReftError),
    "a config without a field": (config_of(lambda c: c["reft"].pop("turns")), ReftError),
    "a config of an unknown kind": (
        config_of(lambda c: c["reft"].update(intervention="mystery", kinds={"mystery": 1})),
        ReftError,
    ),
    "a config of another major version": (config_of(lambda c: c["reft"].update(spec_version="2.0")), ReftError),
    "a config without its object": (config_of(lambda c: c.pop("reft")), ReftError),
    "a missing tensor": (lambda folder: retensor(folder, lambda t: t.popitem()), ReftError),
    "an extra tensor": (lambda folder: retensor(folder, extra), ReftError),
    "a link": (link, IntegrityError),
    "another adapter's weights": (swap, IntegrityError),
    "pickled weights beside": (lambda folder: (folder / PICKLE_NAME).write_bytes(b"x"), ReftError),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_was_changed_is_refused(tmp_path: Path, damage: str) -> None:
    change, error = DAMAGE[damage]
    folder = saved(tmp_path / "adapter")
    PeftModel.from_pretrained(base_model("llama"), str(folder))
    change(folder)
    with pytest.raises(error) as caught:
        PeftModel.from_pretrained(base_model("llama"), str(folder))
    assert isinstance(caught.value, ValueError)
    model = reft_model("llama")
    with pytest.raises(error):
        model.load_adapter(str(folder), "second")


FIELD_DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown field": lambda c: c["reft"].update(more=1),
    "unknown kind": lambda c: c["reft"].update(intervention="mystery", kinds={"mystery": 1}),
    "unknown version of a kind": lambda c: c["reft"]["kinds"].update(loreft=99),
    "other major version": lambda c: c["reft"].update(spec_version="2.0"),
    "higher minor version": lambda c: c["reft"].update(spec_version="1.7"),
    "behaviour in the envelope": lambda c: c.update(positions="f9"),
    "a typo in the positions": lambda c: c["reft"].update(positions="f7+x7"),
    "a rank of zero": lambda c: c["reft"].update(r=0),
}


@pytest.mark.parametrize("damage", FIELD_DAMAGE)
def test_a_config_alone_is_checked_too(tmp_path: Path, damage: str) -> None:
    """No weights and no manifest: what the config itself says is wrong."""
    ReftConfig(**TASK).save_pretrained(str(tmp_path))
    edit_json(tmp_path / CONFIG_NAME, FIELD_DAMAGE[damage])
    for reader in (ReftConfig, PeftConfig):
        with pytest.raises(ReftError):
            reader.from_pretrained(str(tmp_path))


def test_swapped_weights_are_caught_at_the_first_forward_after_load_adapter(tmp_path: Path) -> None:
    """transformers' `load_adapter` shows the tuner no file: the digests in the config are compared afterwards."""
    folder = saved(tmp_path / "adapter")
    swap(folder)
    model = base_model("llama")
    with pytest.raises(IntegrityError, match="other bytes"):  # noqa: PT012  # the check may come with either call
        model.load_adapter(str(folder))
        logits(model)


def test_weights_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")

    def smaller(**changes: Any) -> hf.PreTrainedModel:
        config = base_model("llama").config
        config.update(changes)
        return hf.LlamaForCausalLM(config).eval()

    with pytest.raises(ReftError):
        PeftModel.from_pretrained(smaller(num_hidden_layers=2), str(folder))
    with pytest.raises(ReftError):
        PeftModel.from_pretrained(smaller(hidden_size=16, head_dim=4), str(folder))
    named = saved(tmp_path / "named", layers_to_transform=[0, 2])
    with pytest.raises(ReftError):
        PeftModel.from_pretrained(smaller(num_hidden_layers=2), str(named))


def test_saving_through_a_link_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    moved = (folder / CONFIG_NAME).rename(tmp_path / "elsewhere.json")
    (folder / CONFIG_NAME).symlink_to(moved)
    with pytest.raises(IntegrityError, match="link"):
        reft_model("llama").save_pretrained(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_loaded(tmp_path: Path, value: float) -> None:
    model = reft_model("llama", positions="f2")
    parameter = next(p for n, p in model.named_parameters() if n.endswith("bias") and ".reft_" in n)
    with torch.no_grad():
        parameter[0] = value
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ReftError, match="NaN or infinity"):
        PeftModel.from_pretrained(base_model("llama"), str(tmp_path))


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    """What a start would draw is overwritten by the file: a seeded run goes on as without the adapter."""
    reft_model("llama", positions="l1", r=2, init_weights=False).save_pretrained(tmp_path)
    base = base_model("llama")
    before = torch.get_rng_state()
    PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_whose_file_never_came_does_not_run(tmp_path: Path) -> None:
    """A config that was read records the tensors that belong to it; a model made from it alone has others."""
    reft_model("llama", positions="l1", r=2, init_weights=False).save_pretrained(tmp_path)
    model = get_peft_model(base_model("llama"), ReftConfig.from_pretrained(str(tmp_path)))
    for _ in range(2):
        with pytest.raises(IntegrityError, match="other bytes"):
            model(token_ids(1, 4))
