"""One model with a LoRA and a ReFT: trained together, saved as a bundle, loaded whole, in part and without us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contract.tiny import base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ConfigError, MergeError, ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME

from .tiny import STEPS, lora, mixed_model, reft, trainer_for

TESTS = Path(__file__).parents[1]
INDEX = "reft_index.json"
WITHOUT_US = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft_reft":
            raise ImportError(f"{name} is not installed")
        return None

sys.meta_path.insert(0, Blocked())
from pathlib import Path
import torch, transformers, warnings
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.peft_model import PeftModelForCausalLM
from transformers import LlamaForCausalLM

root = Path(sys.argv[1])
base = LlamaForCausalLM.from_pretrained(root / "base").eval()
plain = LlamaForCausalLM.from_pretrained(root / "base").eval()
ids, lora, whole = torch.load(root / "expected.pt")
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers for it
model = PeftModel.from_pretrained(base, str(root / "bundle")).eval()
plain.load_adapter(str(root / "bundle"))
with torch.no_grad():
    for found in (model(input_ids=ids).logits, plain.eval()(input_ids=ids).logits):
        assert torch.equal(found, lora)
        assert not torch.equal(found, whole)
assert type(model) is PeftModelForCausalLM
try:
    PeftModel.from_pretrained(base, str(root / "bundle" / "reft" / "edit"))
except KeyError as error:
    assert str(error) == "'REFT'"
else:
    raise AssertionError("a ReFT was loaded")
assert not any(name.partition(".")[0] == "peft_reft" for name in sys.modules)
print("loaded the LoRA")
"""


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(2, 9)).logits


def adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n or ".reft_" in n}


def stored_parameters(folder: Path) -> dict[str, Tensor]:
    """The tensors of a bundle with the members default and edit, under the model's names."""
    found = {}
    for part, name, ends in ((folder, "default", ".weight"), (folder / "reft" / "edit", "edit", "")):
        for key, tensor in load_file(part / WEIGHTS_NAME).items():
            stem, _, last = key.removesuffix(ends).rpartition(".")
            found[f"{key.removesuffix(ends)}.{name}{ends}" if ends else f"{stem}.{name}.{last}"] = tensor
    return found


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.fixture
def two() -> MixedReftModel:
    """A LoRA and two ReFTs, all far from the identity, all active."""
    return mixed_model(strong=True, second=reft(intervention="direft", positions="l3", init_weights=False))


def test_both_parts_are_active_and_trainable() -> None:
    model = mixed_model()
    assert isinstance(model, PeftModel)
    assert list(model.peft_config) == ["default", "edit"] == model.active_adapters
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == adapter_parameters(model).keys()
    assert sum(".lora_" in name for name in trained) == 12
    assert sum(".reft_" in name for name in trained) == 9


@pytest.mark.parametrize(
    "configs",
    [
        {"default": lora()},
        {"edit": reft()},
        {"default": reft(), "edit": reft()},
        {"default": lora(), "reft": reft()},
        {"default": lora(), "../edit": reft()},
        {"default": lora(), "edit": {"r": 2}},
        {},
    ],
    ids=["no reft", "no lora", "reft as default", "reserved name", "path as name", "a dict", "nothing"],
)
def test_configs_that_make_no_mixed_model_are_refused(configs: dict[str, Any]) -> None:
    base = base_model("llama")
    before = logits(base)
    with pytest.raises(ConfigError):
        MixedReftModel.from_configs(base, configs)
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("config", [lora(), reft()], ids=["a LoRA", "a ReFT"])
def test_a_base_that_holds_an_adapter_is_refused_until_it_is_unloaded(config: Any) -> None:
    """`get_peft_model` and trainers change the base that they are given, so the caller's own name holds it too."""
    base = base_model("llama")
    around = get_peft_model(base, config)
    with pytest.raises(ConfigError, match="holds an adapter already"):
        MixedReftModel.from_configs(base, {"default": lora(), "edit": reft()})
    mixed = MixedReftModel.from_configs(around.unload(), {"default": lora(), "edit": reft()})
    assert mixed.active_adapters == ["default", "edit"]


@dataclass(frozen=True)
class Run:
    """A finished training run: parameters of the adapters before, all parameters after, (step, loss), its trainer."""

    folder: Path
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    losses: list[tuple[int, float]]
    trainer: Any


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_for(folder)
    assert isinstance(trainer.model, MixedReftModel)
    before = adapter_parameters(trainer.model)
    trainer.train()
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    after = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return Run(folder, before, after, losses, trainer)


def test_one_run_trains_both_parts(whole: Run) -> None:
    adapters = {name: whole.after[name] for name in whole.before}
    assert len(adapters) == 12 + 9
    assert not [name for name, tensor in adapters.items() if torch.equal(tensor, whole.before[name])]
    base = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): tensor
        for name, tensor in whole.after.items()
        if name not in adapters
    }
    assert equal(base, dict(base_model("llama").named_parameters()))
    assert equal(stored_parameters(whole.folder / f"checkpoint-{STEPS}"), adapters)


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixed.tiny", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1"}
    killed = subprocess.run([*command, "--kill-at", "4"], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "result.pt").exists()
    resumed = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    parameters, losses = torch.load(tmp_path / "result.pt", weights_only=False)
    assert equal(parameters, whole.after)
    assert losses == whole.losses
    assert len(losses) == STEPS
    final = f"checkpoint-{STEPS}"
    assert equal(stored_parameters(tmp_path / final), stored_parameters(whole.folder / final))


def test_the_best_checkpoint_brings_both_parts_back(tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        greater_is_better=True,  # the worst loss, so that the best model is not the last
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-3"
    loaded, last = adapter_parameters(trainer.model), stored_parameters(tmp_path / "checkpoint-3")
    assert equal(loaded, stored_parameters(best))
    for part in (".lora_", ".reft_"):
        assert not any(torch.equal(last[name], tensor) for name, tensor in loaded.items() if part in name)


@pytest.mark.parametrize("damage", ["flipped", "swapped", "removed", "positions", "lora"])
def test_a_tampered_member_is_not_resumed_from(whole: Run, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(whole.folder / "checkpoint-3", tmp_path / "checkpoint-3"))
    member = folder / "reft" / "edit"
    if damage == "flipped":
        data = bytearray((member / WEIGHTS_NAME).read_bytes())
        data[-2] ^= 1
        (member / WEIGHTS_NAME).write_bytes(bytes(data))
    elif damage == "swapped":
        other = whole.folder / f"checkpoint-{STEPS}" / "reft" / "edit" / WEIGHTS_NAME
        (member / WEIGHTS_NAME).write_bytes(other.read_bytes())
    elif damage == "removed":
        (member / WEIGHTS_NAME).unlink()
    elif damage == "positions":
        text = (member / CONFIG_NAME).read_text()
        assert "f2+l2" in text
        (member / CONFIG_NAME).write_text(text.replace("f2+l2", "f3+l3"))
    else:
        tensors = load_file(folder / WEIGHTS_NAME)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    before = adapter_parameters(whole.trainer.model)
    with pytest.raises(ReftError):
        whole.trainer.train(resume_from_checkpoint=str(folder))
    assert equal(adapter_parameters(whole.trainer.model), before)


def test_a_bundle_of_another_model_is_not_resumed_from(tmp_path: Path, two: MixedReftModel) -> None:
    two.save_pretrained(str(tmp_path / "bundle"))
    model = mixed_model()
    with pytest.raises(ReftError, match="second"):
        model.load_adapter(str(tmp_path / "bundle"), "default", is_trainable=True)


def test_a_bundle_has_its_place_for_every_part(tmp_path: Path, two: MixedReftModel) -> None:
    two.add_adapter("other", lora(r=3, init_lora_weights=False))
    expected = logits(two)
    folder = tmp_path / "bundle"
    two.save_pretrained(str(folder))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    parts = {"", "other/", "reft/edit/", "reft/second/"}
    assert {f"{part}{name}" for part in parts for name in (CONFIG_NAME, WEIGHTS_NAME)} <= files
    assert {name for name in files if name.endswith(MANIFEST_NAME)} == {
        f"reft/edit/{MANIFEST_NAME}",
        f"reft/second/{MANIFEST_NAME}",
    }
    assert INDEX in files
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    loaded = MixedReftModel.from_pretrained(base_model("llama"), folder)
    assert set(loaded.peft_config) == {"default", "other", "edit", "second"}
    loaded.set_adapter(["default", "edit", "second"])
    assert torch.equal(logits(loaded), expected)
    for name in ("edit", "second"):
        check_folder(folder / "reft" / name)
        alone = PeftModel.from_pretrained(base_model("llama"), str(folder / "reft" / name))
        two.set_adapter(name)
        assert torch.equal(logits(alone), logits(two))


def test_loading_is_frozen_or_trainable_as_asked(tmp_path: Path) -> None:
    model = mixed_model(strong=True)
    model.save_pretrained(str(tmp_path))
    frozen = MixedReftModel.from_pretrained(base_model("llama"), str(tmp_path))
    assert not frozen.training
    assert not [name for name, p in frozen.named_parameters() if p.requires_grad]
    trainable = MixedReftModel.from_pretrained(base_model("llama"), str(tmp_path), is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == adapter_parameters(model).keys()
    for loaded in (frozen, trainable):
        assert equal(adapter_parameters(loaded), adapter_parameters(model))
        assert torch.equal(logits(loaded), logits(model))


def test_stock_peft_without_this_package_loads_the_lora(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path / "base")
    model = mixed_model(strong=True)
    model.save_pretrained(str(tmp_path / "bundle"))
    alone = get_peft_model(base_model("llama"), lora())
    named = dict(alone.named_parameters())
    with torch.no_grad():
        for name, tensor in adapter_parameters(model).items():
            if ".lora_" in name:
                named[name].copy_(tensor)
    ids = token_ids(2, 9)
    torch.save((ids, logits(alone), logits(model)), tmp_path / "expected.pt")
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "loaded the LoRA" in done.stdout
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(alone))


def test_every_set_of_adapters_can_be_active(two: MixedReftModel) -> None:
    sets = [[], ["default"], ["edit"], ["second"], ["default", "edit"], ["edit", "second"], ["default", "second"]]
    seen = []
    for names in sets:
        two.set_adapter(names)
        assert two.active_adapters == names
        assert {n.split(".")[-2] for n, p in two.named_parameters() if p.requires_grad} == set(names)
        seen.append(logits(two))
    assert torch.equal(seen[0], logits(base_model("llama")))
    assert all(not torch.equal(a, b) for n, a in enumerate(seen) for b in seen[:n])
    two.set_adapter(["second", "edit"])
    torch.testing.assert_close(logits(two), seen[5])
    with pytest.raises(ConfigError, match="nothing"):
        two.set_adapter(["edit", "nothing"])


def test_disabling_gives_the_bits_of_the_base(two: MixedReftModel) -> None:
    on = logits(two)
    with two.disable_adapter():
        assert torch.equal(logits(two), logits(base_model("llama")))
        ids = token_ids(1, 5)
        assert torch.equal(
            two.generate(input_ids=ids, max_new_tokens=4, do_sample=False),
            base_model("llama").generate(ids, max_new_tokens=4, do_sample=False),
        )
    assert torch.equal(logits(two), on)
    assert two.active_adapters == ["default", "edit", "second"]


def test_adapters_are_added_and_deleted(two: MixedReftModel, tmp_path: Path) -> None:
    before = logits(two)
    two.add_adapter("third", reft(init_weights=False))
    two.add_adapter("more", lora(init_lora_weights=False))
    assert torch.equal(logits(two), before)  # not active yet
    two.set_adapter(["default", "edit", "second", "third", "more"])
    assert not torch.equal(logits(two), before)
    two.save_pretrained(str(tmp_path))
    for name in ("third", "more"):
        with pytest.raises(ConfigError, match=name):
            two.add_adapter(name, reft())
        two.delete_adapter(name)
        assert name not in two.peft_config
        assert not [n for n, _ in two.named_parameters() if f".{name}." in n]
    two.set_adapter(["default", "edit", "second"])
    assert torch.equal(logits(two), before)
    two.save_pretrained(str(tmp_path))
    assert not (tmp_path / "reft" / "third").exists()
    assert not (tmp_path / "more").exists()
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), tmp_path)), before)
    for name in ("default", "nothing"):
        with pytest.raises(ConfigError, match=name):
            two.delete_adapter(name)


def test_deleting_an_active_edit_leaves_the_rest_active(two: MixedReftModel) -> None:
    two.set_adapter(["default", "second"])
    expected = logits(two)
    two.set_adapter(["default", "edit", "second"])
    two.delete_adapter("edit")
    assert two.active_adapters == ["default", "second"]
    assert torch.equal(logits(two), expected)


def test_deleting_the_last_edit_leaves_the_lora() -> None:
    model = mixed_model(strong=True)
    model.set_adapter("default")
    expected = logits(model)
    model.set_adapter(["default", "edit"])
    model.delete_adapter("edit")
    assert torch.equal(logits(model), expected)
    assert list(model.peft_config) == ["default"]


def test_a_failed_addition_changes_nothing(two: MixedReftModel) -> None:
    before, names = logits(two), list(two.peft_config)
    with pytest.raises(ReftError):
        two.add_adapter("third", reft(layers_to_transform=[40]))
    assert list(two.peft_config) == names
    assert torch.equal(logits(two), before)


def test_unload_gives_the_base_back(two: MixedReftModel) -> None:
    plain = base_model("llama")
    base = two.unload()
    assert type(base) is type(plain)
    assert torch.equal(logits(base), logits(plain))
    assert [name for name, _ in base.named_modules()] == [name for name, _ in plain.named_modules()]
    hooks = [module for module in base.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks


@pytest.mark.parametrize("verb", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused(two: MixedReftModel, verb: str) -> None:
    before = logits(two)
    with pytest.raises(MergeError, match="positions"):
        getattr(two, verb)()
    assert torch.equal(logits(two), before)


def test_one_member_is_loaded_into_another_model(tmp_path: Path, two: MixedReftModel) -> None:
    two.add_adapter("plain", lora(r=3, init_lora_weights=False))
    two.save_pretrained(str(tmp_path))
    model = mixed_model()
    model.load_adapter(str(tmp_path), "weights", subfolder="plain")
    two.set_adapter("plain")
    model.set_adapter("weights")
    assert torch.equal(logits(model), logits(two))
    two.set_adapter("second")
    model.load_adapter(str(tmp_path / "reft" / "second"), "guest")
    model.load_adapter(str(tmp_path), "other", subfolder="reft/second")
    for name in ("guest", "other"):
        model.set_adapter(name)
        assert torch.equal(logits(model), logits(two))
    before = adapter_parameters(two)
    with pytest.raises(ReftError, match="guest"):
        two.load_adapter(str(tmp_path), "guest")
    assert equal(adapter_parameters(two), before)


def test_saving_into_a_file_or_through_a_link_is_refused(tmp_path: Path, two: MixedReftModel) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(ReftError):
            two.save_pretrained(str(tmp_path / name))
    assert not list((tmp_path / "real").iterdir())


@pytest.mark.parametrize("fields", [{"safe_serialization": False}, {"selected_adapters": ["edit"]}])
def test_what_a_bundle_cannot_be_is_said(tmp_path: Path, two: MixedReftModel, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        two.save_pretrained(str(tmp_path / "bundle"), **fields)
    assert not list(tmp_path.iterdir())
    two.save_pretrained(str(tmp_path / "bundle"), safe_serialization=True)
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "bundle")), logits(two))


@pytest.mark.parametrize("damage", ["index", "lora", "member", "manifest", "kind", "folder"])
def test_a_bundle_that_was_changed_is_refused(tmp_path: Path, damage: str) -> None:
    mixed_model(strong=True).save_pretrained(str(tmp_path))
    MixedReftModel.from_pretrained(base_model("llama"), tmp_path)
    index = tmp_path / INDEX
    if damage == "index":
        index.unlink()
    elif damage in ("lora", "member"):
        path = (tmp_path if damage == "lora" else tmp_path / "reft" / "edit") / WEIGHTS_NAME
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "manifest":
        (tmp_path / "reft" / "edit" / MANIFEST_NAME).unlink()
    elif damage == "kind":
        index.write_text(index.read_text().replace('"lora"', '"ia3"'))
    else:
        index.write_text(index.read_text().replace('"reft/edit"', '"../edit"'))
    with pytest.raises(ReftError):
        MixedReftModel.from_pretrained(base_model("llama"), tmp_path)


def test_the_config_of_a_member_stays_readable_alone(tmp_path: Path) -> None:
    mixed_model().save_pretrained(str(tmp_path))
    config = ReftConfig.from_pretrained(str(tmp_path / "reft" / "edit"))
    assert config.to_dict()["reft"] == reft().to_dict()["reft"]
