"""What a save writes: equal bytes for equal adapters, nothing stale, through no link, by the umask, or nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.folders import contents
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

import peft_reft
from contract.tiny import base_model, reft_model
from peft_reft import MixedReftModel, ReftConfig, list_adapters, save_pretrained
from peft_reft.hub_format import folder_lock
from peft_reft.hub_format.errors import ConfigError, IntegrityError, ReftError

ALONE = {"adapter_config.json", "adapter_model.safetensors", "reft_manifest.json", "README.md"}
SAME = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig
from contract.tiny import base_model
from peft_reft import MixedReftModel, ReftConfig, save_pretrained
from peft import get_peft_model

def values(model):
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name or "reft_" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape).sin())
    return model

out, order = Path(sys.argv[1]), int(sys.argv[2])
lora = lambda: LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj", "k_proj", "o_proj"])
reft = lambda **more: ReftConfig(task_type="CAUSAL_LM", r=2, **more)
configs = {"default": lora(), "extra": lora(), "b": reft(), "a": reft(intervention="bias")}
names = list(configs)[::order] if order > 0 else ["default", *list(configs)[:0:-1]]
values(MixedReftModel.from_configs(base_model("llama"), {n: configs[n] for n in names})).save_pretrained(out / "both")
configs = {"default": reft(), "b": reft(), "a": reft(intervention="bias")}
names = list(configs)[::order]
model = get_peft_model(base_model("llama"), configs[names[0]], names[0])
for name in names[1:]:
    model.add_adapter(name, configs[name])
save_pretrained(values(model), out / "plain")
"""


def test_equal_adapters_give_equal_bytes_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in a process with other hashes, where the adapters are made in another order."""
    environment = {**os.environ, "PYTHONHASHSEED": "41", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SAME, str(tmp_path / "1"), "-1"], env=environment)
    assert done.returncode == 0
    monkeypatch.setattr(sys, "argv", ["here", str(tmp_path / "0"), "1"])
    exec(SAME, {})
    first, second = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) == 12 + 10


@pytest.fixture(scope="module")
def one() -> PeftModel:
    return reft_model("llama", positions="f2")


def mixed(*edits: str) -> MixedReftModel:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    configs = {name: ReftConfig(task_type="CAUSAL_LM", r=2) for name in edits}
    return MixedReftModel.from_configs(base_model("llama"), {"default": lora, **configs})


def several(*names: str) -> PeftModel:
    model = get_peft_model(base_model("llama"), ReftConfig(task_type="CAUSAL_LM", r=2), names[0])
    for name in names[1:]:
        model.add_adapter(name, ReftConfig(task_type="CAUSAL_LM", r=2))
    return model


def stock_lora(folder: Path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(base_model("llama"), lora).save_pretrained(folder)


BEFORE: dict[str, Callable[[Path], object]] = {
    "a bundle": lambda folder: mixed("edit", "more").save_pretrained(str(folder)),
    "several": lambda folder: save_pretrained(several("default", "second", "third"), folder),
    "several, by PEFT": lambda folder: several("default", "second").save_pretrained(folder),
    "several, none at the root": lambda folder: several("second", "third").save_pretrained(folder),
    "pickled": lambda folder: reft_model("llama").save_pretrained(folder, safe_serialization=False),
    "a LoRA": stock_lora,
    "a torn bundle": lambda folder: (
        mixed("edit", "more").save_pretrained(str(folder)),
        (folder / "reft_index.json").unlink(),
        (folder / "adapter_config.json").unlink(),
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_save_leaves_no_member_of_what_was_there(name: str, one: PeftModel, tmp_path: Path) -> None:
    save_pretrained(one, tmp_path / "alone")
    mixed("edit").save_pretrained(str(tmp_path / "both"))
    for save, expected in (
        (lambda f: save_pretrained(one, f), "alone"),
        (lambda f: mixed("edit").save_pretrained(f), "both"),
    ):
        folder = tmp_path / f"over-{expected}"
        BEFORE[name](folder)
        (folder / "notes.txt").write_text("mine")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        save(folder)
        assert contents(folder).keys() == {*contents(tmp_path / expected), "notes.txt", "tokenizer/tokenizer.json"}
        assert list_adapters(folder) == list_adapters(tmp_path / expected)
        assert {path.name for path in folder.iterdir() if path.is_dir()} - {"reft"} == {"tokenizer"}


def test_what_belongs_to_someone_else_stays(one: PeftModel, tmp_path: Path) -> None:
    """A trainer's checkpoint, an adapter saved by itself, a LoRA in a folder of its own."""
    save_pretrained(one, tmp_path)
    save_pretrained(one, tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / "README.md").unlink()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    save_pretrained(one, tmp_path / "poems")
    stock_lora(tmp_path / "theirs")
    before = contents(tmp_path)
    save_pretrained(one, tmp_path)
    assert contents(tmp_path) == before


def test_only_the_adapters_asked_for_are_saved(tmp_path: Path) -> None:
    model = several("default", "second", "third")
    save_pretrained(model, tmp_path, selected_adapters=["second"])
    assert {path.split("/")[0] for path in contents(tmp_path)} == {"second", "README.md"}
    with pytest.raises(ConfigError, match="'nope'"):
        save_pretrained(model, tmp_path, selected_adapters=["nope"])
    with pytest.raises(ConfigError, match="empty"):
        save_pretrained(model, tmp_path, selected_adapters=[])
    assert {path.split("/")[0] for path in contents(tmp_path)} == {"second", "README.md"}


def test_a_model_without_edits_and_a_name_outside_the_grammar_are_refused(one: PeftModel, tmp_path: Path) -> None:
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="no ReFT"):
        save_pretrained(lora, tmp_path / "lora")
    for name in ("../up", "/abs", "a b", "reft", "-x", "x" * 65, ""):
        model = reft_model("llama")
        model.base_model.peft_config[name] = model.peft_config["default"]
        with pytest.raises(ReftError) as caught:
            save_pretrained(model, tmp_path / "named", selected_adapters=[name])
        assert caught.value.code == "name"
    assert list(tmp_path.iterdir()) == []


def test_a_mixed_model_is_saved_as_a_bundle(tmp_path: Path) -> None:
    model = mixed("edit")
    save_pretrained(model, tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_process_that_is_not_the_main_one_writes_nothing(one: PeftModel, tmp_path: Path) -> None:
    save_pretrained(one, tmp_path / "x", is_main_process=False)
    save_pretrained(mixed("edit"), tmp_path / "x", is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_a_card_keeps_its_text_and_tags(one: PeftModel, tmp_path: Path) -> None:
    for model in (one, mixed("edit")):
        (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [poems]\n---\n\n# Mine\n", "utf-8")
        for _ in range(2):
            save_pretrained(model, tmp_path)
            card = ModelCard.load(tmp_path / "README.md")
            assert card.text.lstrip().startswith("# Mine")
            assert card.data.license == "mit"
            assert "poems" in card.data.tags
            assert len(card.data.tags) > 1


LINKS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "reft_manifest.json",
    "README.md",
    "reft_index.json",
    "reft",
)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_a_link(name: str, dangling: bool, tmp_path: Path) -> None:
    folder, victim = tmp_path / "adapter", tmp_path / "victim"
    folder.mkdir()
    if not dangling:
        victim.mkdir() if name == "reft" else victim.write_text("mine")
    (folder / name).symlink_to(victim)
    before = contents(tmp_path)
    with pytest.raises(ReftError, match="link"):
        mixed("edit").save_pretrained(str(folder)) if name.startswith("reft") else save_pretrained(
            several("default"), folder
        )
    assert contents(tmp_path) == before
    assert [path.name for path in folder.iterdir()] == [name]
    assert victim.exists() is not dangling


def test_the_folder_itself_may_not_be_a_link_and_a_parent_may(one: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ReftError, match="not a folder"):
        save_pretrained(one, tmp_path / "link")
    assert list((tmp_path / "real").iterdir()) == []
    save_pretrained(one, tmp_path / "link" / "adapter")
    assert contents(tmp_path / "real" / "adapter").keys() == ALONE


def test_a_hard_link_is_cut_and_its_other_name_keeps_its_bytes(one: PeftModel, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ALONE:
        (tmp_path / name).write_text("---\n---\nmine" if name == "README.md" else "mine")
        os.link(tmp_path / name, folder / name)
    save_pretrained(one, folder)
    assert all("mine" in (tmp_path / name).read_text() for name in ALONE)
    PeftModel.from_pretrained(base_model("llama"), folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "reft", "adapter_model.safetensors"])
def test_a_folder_where_a_file_would_be_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    if name == "reft":
        folder.mkdir()
        (folder / name).write_text("mine")
    elif name == "adapter_config.json":
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("mine")
    else:
        folder.mkdir()
        os.mkfifo(folder / name)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ReftError) as caught:
        mixed("edit").save_pretrained(str(folder))
    assert caught.value.code == "save.place"
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_modes_follow_the_umask(umask: int, one: PeftModel, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_pretrained(one, tmp_path / "new")
        mixed("edit").save_pretrained(str(tmp_path / "both"))
        stock_lora(tmp_path / "over")
        save_pretrained(one, tmp_path / "over")
        one.save_pretrained(tmp_path / "stock")
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(found) == 3 * (4 + 1) + 7 + 3
    assert {path.name for path, mode in found.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask} == set()


def test_the_same_adapter_again_with_another_umask_gets_its_modes(one: PeftModel, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        save_pretrained(one, tmp_path / "x")
        os.umask(0o022)
        save_pretrained(one, tmp_path / "x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()} == {0o644}


def test_what_is_there_already_is_left_alone(one: PeftModel, tmp_path: Path) -> None:
    save_pretrained(one, tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    save_pretrained(one, tmp_path)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


FAILS = ("mkdir", "chmod", "fsync", "rename", "open", "serialize")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", FAILS)
def test_a_full_disk_or_one_that_cannot_be_written_leaves_the_old_adapters(
    call: str, error: int, one: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    mixed("edit").save_pretrained(str(folder))
    before = contents(tmp_path)
    failed = []

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*arguments: Any, **options: Any) -> Any:
            writes = call != "open" or (isinstance(arguments[1], int) and arguments[1] & (os.O_WRONLY | os.O_RDWR))
            exists = call == "mkdir" and os.path.exists(arguments[0])  # which is no error then
            if failed or exists or not writes:
                return original(*arguments, **options)
            failed.append(call)
            raise OSError(error, os.strerror(error))

        return fail

    if call == "serialize":
        import safetensors.torch

        monkeypatch.setattr(safetensors.torch, "serialize_file", failing(safetensors.torch.serialize_file))
    else:
        monkeypatch.setattr(os, call, failing(getattr(os, call)))
    with pytest.raises(OSError, match=os.strerror(error).replace("(", r"\(")):
        save_pretrained(one, folder)
    assert failed
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    save_pretrained(one, folder)
    assert contents(folder).keys() == ALONE


def test_a_folder_that_cannot_be_written_in_part_is_not_begun(
    one: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed("edit").save_pretrained(str(tmp_path))
    before = contents(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "edit" and access(path, mode))
    with pytest.raises(PermissionError, match="edit"):
        save_pretrained(one, tmp_path)
    assert contents(tmp_path) == before


def test_of_many_that_save_at_once_one_is_there_whole(tmp_path: Path) -> None:
    models = [reft_model("llama", positions="f2", r=r) for r in (1, 2, 3)] + [mixed("edit"), mixed("more")]
    for number, model in enumerate(models):
        save_pretrained(model, tmp_path / str(number))
    expected = [contents(tmp_path / str(number)) for number in range(len(models))]
    folder = tmp_path / "shared"
    children = []
    for model in models:
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(4):
                    save_pretrained(model, folder)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(models)
    found = contents(folder)
    same = [
        number
        for number, one in enumerate(expected)
        if {k: v for k, v in one.items() if k != "README.md"} == {k: v for k, v in found.items() if k != "README.md"}
    ]
    assert len(same) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    list_adapters(folder)


def test_who_waits_too_long_for_another_is_told(
    one: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(one, tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.05)
    with folder_lock.folder_lock(tmp_path), pytest.raises(IntegrityError) as caught:
        save_pretrained(reft_model("llama", r=3), tmp_path)
    assert caught.value.code == "save.busy"
    assert contents(tmp_path) == before
    save_pretrained(reft_model("llama", r=3), tmp_path)
    assert contents(tmp_path) != before


def test_it_is_public_and_names_its_refusals() -> None:
    assert "save_pretrained" in peft_reft.__all__
    assert all(word in (save_pretrained.__doc__ or "") for word in ("Args:", "Raises:", "save.busy"))
