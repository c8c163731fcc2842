"""Killed at any step, a save leaves the old adapters or the new ones, to the byte; so does whoever finishes it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.folders import contents
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, convert, list_adapters, save_pretrained
from peft_reft.hub_format.errors import ManifestError, ReftError
from peft_reft.hub_format.journal import COMMIT_NAME, FILES_NAME, STAGE_PREFIX, settle
from peft_reft.integrations.cli import main

from .killing import count_steps, killed_at

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are followed through /proc"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def mixed(rank: int, **edits: ReftConfig) -> MixedReftModel:
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        return MixedReftModel.from_configs(base_model("llama"), {"default": lora, **edits})


def edit(**fields: Any) -> ReftConfig:
    return ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False, **fields)


def several() -> PeftModel:
    model = reft_model("llama", positions="f2")
    model.add_adapter("second", edit(r=3))
    return model


def kept(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what a dead process left of its own."""
    return (
        {path: data for path, data in contents(folder).items() if STAGE_PREFIX not in path} if folder.exists() else {}
    )


@dataclass
class Case:
    """An old folder (None: there is none) and what is saved over it."""

    old: Callable[[Path], object] | None
    new: Callable[[Path], object]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    source = tmp_path_factory.mktemp("theirs")
    one, other, two = reft_model("llama", positions="f2"), reft_model("llama", positions="l2", r=3, seed=1), several()
    both, others = mixed(2, edit=edit(r=2)), mixed(3, edit=edit(r=2), more=edit(r=1, intervention="bias"))
    base_model("llama").save_pretrained(source / "base")
    save_pretrained(one, source / "ours")
    convert(source / "ours", source / "pyreft", to="pyreft")
    imported = {"base_model": source / "base", "positions": "f2"}

    def saves(model: PeftModel) -> Callable[[Path], object]:
        return lambda folder: save_pretrained(model, folder)

    return {
        "one over another": Case(saves(one), saves(other)),
        "the first": Case(None, saves(one)),
        "one over several": Case(saves(two), saves(other)),
        "a bundle over a bundle": Case(saves(both), saves(others)),
        "a smaller bundle": Case(saves(others), saves(both)),
        "a bundle over one": Case(saves(one), saves(both)),
        "one over a bundle": Case(saves(both), saves(one)),
        "converted": Case(None, lambda folder: convert(source / "pyreft", folder, **imported)),
        "converted back": Case(None, lambda folder: convert(source / "ours", folder, to="pyreft")),
    }


CASES = (
    "one over another",
    "the first",
    "one over several",
    "a bundle over a bundle",
    "a smaller bundle",
    "a bundle over one",
    "one over a bundle",
    "converted",
    "converted back",
)
QUICKLY = ("one over another", "the first", "one over a bundle")


def old_or_new(case: Case, home: Path, pick: Callable[[int], Iterator[int]]) -> None:
    folder, template, after = home / "root" / "adapter", home / "old", home / "new"
    folder.parent.mkdir()
    if case.old is not None:
        case.old(template)
        (template / "notes.txt").write_text("mine")
        shutil.copytree(template, after)
    case.new(after)
    old, new = kept(template), kept(after)
    assert old != new

    def again() -> None:
        shutil.rmtree(folder.parent)
        folder.parent.mkdir()
        if case.old is not None:
            shutil.copytree(template, folder)

    again()
    total = count_steps(lambda: case.new(folder), folder.parent)
    assert kept(folder) == new
    found = []
    for step in pick(total):
        again()
        killed_at(step, lambda: case.new(folder), folder.parent)
        if folder.exists():
            settle(folder)
        found.append(kept(folder))
        assert found[-1] in (old, new), f"step {step} of {total}: {sorted(found[-1])}"
    assert found[0] == old
    assert found[-1] == new
    if case.old is not None:
        case.new(folder)
    assert contents(folder) == new, "the next save leaves nothing of a dead one"


def around_the_commit(total: int) -> Iterator[int]:
    """Two steps of the long way to it, and every second one from there."""
    yield from (0, total // 2)
    yield from range(total - 15, total, 2)


@pytest.mark.parametrize("name", QUICKLY)
def test_the_old_or_the_new_is_there(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    old_or_new(cases[name], tmp_path, around_the_commit)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_old_or_the_new_is_there_after_every_step(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    assert set(CASES) == set(cases)
    old_or_new(cases[name], tmp_path, lambda total: iter(range(total)))


@pytest.fixture(scope="module")
def torn(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A folder with `new`, and copies of a folder in which a save was killed at every step after its commit."""
    home = tmp_path_factory.mktemp("torn")
    case = cases["a bundle over a bundle"]
    assert case.old is not None
    case.old(home / "old")
    shutil.copytree(home / "old", home / "new")
    total = count_steps(lambda: case.new(home / "new"), home / "new")
    found = []
    for step in range(total - 1, 0, -2):
        folder = home / f"step-{step}"
        shutil.copytree(home / "old", folder)
        killed_at(step, lambda folder=folder: case.new(folder), folder)  # type: ignore[misc]
        if (folder / COMMIT_NAME).exists():
            found.append(folder)
        elif found:
            break
    assert len(found) > 5
    return home, found[::-1]


READERS: dict[str, Callable[[Path], object]] = {
    "PeftModel, a member": lambda folder: PeftModel.from_pretrained(base_model("llama"), folder / "reft" / "edit"),
    "PeftModel, a subfolder": lambda folder: PeftModel.from_pretrained(
        base_model("llama"), folder, subfolder="reft/edit"
    ),
    "MixedReftModel": lambda folder: MixedReftModel.from_pretrained(base_model("llama"), folder),
    "load_adapter": lambda folder: mixed(3, edit=edit(r=2), more=edit(r=1, intervention="bias")).load_adapter(
        folder, "default"
    ),
    "list_adapters": list_adapters,
    "validate": lambda folder: main(["validate", str(folder)]),
}


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_first_finishes_it(name: str, torn: tuple[Path, list[Path]], tmp_path: Path) -> None:
    home, folders = torn
    new = kept(home / "new")
    for folder in folders[::3]:
        shutil.copytree(folder, tmp_path / folder.name)
        assert kept(tmp_path / folder.name) != new
        READERS[name](tmp_path / folder.name)
        assert kept(tmp_path / folder.name) == new


def test_who_finishes_it_may_be_killed_too(torn: tuple[Path, list[Path]], tmp_path: Path) -> None:
    home, folders = torn
    folder = tmp_path / "adapter"
    shutil.copytree(folders[0], folder)
    total = count_steps(lambda: settle(folder), folder)
    for step in range(total):
        shutil.rmtree(folder)
        shutil.copytree(folders[0], folder)
        killed_at(step, lambda: settle(folder), folder)
        settle(folder)
        assert kept(folder) == kept(home / "new")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(2, 9)).logits


def test_stock_peft_reads_the_old_lora_or_the_new_one_or_finds_none(
    torn: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """Nothing of ours runs when PEFT reads the LoRA at the root: no pair of an old and a new file may lie there."""
    home, folders = torn
    old, new = (logits(PeftModel.from_pretrained(base_model("llama"), home / name)) for name in ("old", "new"))
    found = {"old": 0, "new": 0, "none": 0}
    for folder in folders:
        try:
            seen = logits(PeftModel.from_pretrained(base_model("llama"), folder))
        except ValueError as error:
            assert "adapter_config.json" in str(error)  # noqa: PT017
            found["none"] += 1
        else:
            assert torch.equal(seen, old) or torch.equal(seen, new)
            found["old" if torch.equal(seen, old) else "new"] += 1
        assert (folder / COMMIT_NAME).exists(), "it is PEFT alone that reads here"
    assert all(found.values()), found


def test_where_nothing_can_be_written_an_interrupted_save_is_named(
    torn: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    folder = torn[1][0]
    before = contents(folder)
    for name in ("replace", "unlink", "rename"):
        monkeypatch.setattr(os, name, refused)
    for name in ("MixedReftModel", "PeftModel, a member", "list_adapters"):
        with pytest.raises(ReftError) as caught:
            READERS[name](folder)
        assert caught.value.code == "save.interrupted"
    assert contents(folder) == before


def test_what_peft_saved_after_an_interrupted_save_stays(torn: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """Its writer knows nothing of commits: what is newer is not taken back, and two saves are not mixed."""
    _, folders = torn
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    later, edited = get_peft_model(base_model("llama"), lora), reft_model("llama", base=base_model("llama"), seed=9)
    for number, torn_folder in enumerate(folders):
        folder = tmp_path / f"lora-{number}"
        shutil.copytree(torn_folder, folder)
        later.save_pretrained(folder)
        settle(folder)
        assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), folder)), logits(later))
        with pytest.raises(ReftError):
            MixedReftModel.from_pretrained(base_model("llama"), folder)
        folder = tmp_path / f"edit-{number}"
        shutil.copytree(torn_folder, folder)
        edited.save_pretrained(folder / "reft" / "edit")
        found = PeftModel.from_pretrained(base_model("llama"), folder / "reft" / "edit")
        assert not (folder / COMMIT_NAME).exists()
        assert torch.equal(logits(found), logits(edited))


def test_a_card_that_was_written_since_stays_and_holds_nothing_up(
    torn: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    home, folders = torn
    shutil.copytree(folders[0], tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("mine")
    settle(tmp_path / "adapter")
    assert kept(tmp_path / "adapter") == {**kept(home / "new"), "README.md": b"mine"}


def planned(folder: Path, steps: object, **more: object) -> None:
    """A commit that a stranger made."""
    (folder / COMMIT_NAME / FILES_NAME).mkdir(parents=True)
    for name in ("evil.txt", "adapter_config.json"):
        (folder / COMMIT_NAME / FILES_NAME / name).write_text("theirs")
    (folder / COMMIT_NAME / "plan.json").write_text(json.dumps({"version": 1, "steps": steps, **more}))


HOSTILE: dict[str, object] = {
    "outside": [["place", "../evil.txt", None, None]],
    "absolute": [["place", "/tmp/evil.txt", None, None]],
    "hidden": [["place", ".git/hooks/evil.txt", None, None]],
    "windows": [["place", "C:\\evil.txt", None, None]],
    "through a link": [["place", "linked/evil.txt", None, None]],
    "removes what is no adapter's": [["remove", "notes.txt", None, None]],
    "removes outside": [["remove", "../adapter_config.json", None, None]],
    "another action": [["run", "evil.txt", None, None]],
    "no list": "place",
    "no pair": [["place"]],
    "no text": [["place", 7, None, None]],
    "no digest": [["place", "evil.txt", 7, None]],
    "too many": [["place", "evil.txt", None, None]] * 10_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_commit_that_no_writer_leaves_is_refused(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "adapter", tmp_path / "outside"
    save_pretrained(reft_model("llama", positions="f2"), folder)
    outside.mkdir()
    (tmp_path / "adapter_config.json").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "linked").symlink_to(outside)
    planned(folder, HOSTILE[name])
    before = contents(tmp_path)
    with pytest.raises(ManifestError):
        PeftModel.from_pretrained(base_model("llama"), folder)
    with pytest.raises(ManifestError):
        list_adapters(folder)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["file", "link", "no plan", "linked files", "linked file", "another version"])
def test_what_looks_like_a_commit_and_is_none_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_pretrained(reft_model("llama", positions="f2"), folder)
    if what == "file":
        (folder / COMMIT_NAME).write_text("x")
    else:
        planned(folder, [["place", "evil.txt", None, None]], **({"version": 2} if what == "another version" else {}))
    moved = {
        "link": COMMIT_NAME,
        "linked files": f"{COMMIT_NAME}/files",
        "linked file": f"{COMMIT_NAME}/files/evil.txt",
    }
    if what in moved:
        (folder / moved[what]).rename(tmp_path / "moved")
        (folder / moved[what]).symlink_to(tmp_path / "moved")
    elif what == "no plan":
        (folder / COMMIT_NAME / "plan.json").unlink()
    with pytest.raises(ManifestError):
        PeftModel.from_pretrained(base_model("llama"), folder)
    assert not (folder / "evil.txt").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="gives files to another user")
def test_a_commit_of_another_user_is_not_carried_out(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_pretrained(reft_model("llama", positions="f2"), folder)
    for place in (folder, tmp_path):
        planned(place, [["place", "evil.txt", None, None]])
        os.chown(place / COMMIT_NAME, 12345, 12345)
    with pytest.raises(ReftError, match="another user"):
        list_adapters(folder)
    shutil.rmtree(folder / COMMIT_NAME)
    list_adapters(folder)  # what a stranger leaves in /tmp is nothing to a folder in it
    assert not (tmp_path / "evil.txt").exists()


def test_a_killed_save_of_peft_itself_is_the_old_or_the_new_or_refused(tmp_path: Path) -> None:
    """PEFT writes the weights in place before any of our code runs."""
    old, new = (reft_model("llama", base=base_model("llama"), positions="f2", seed=seed) for seed in (0, 1))
    expected = [logits(old), logits(new)]
    assert not torch.equal(*expected)
    old.save_pretrained(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "adapter")
    total = count_steps(lambda: new.save_pretrained(tmp_path / "adapter"), tmp_path / "adapter")
    seen = []
    for step in range(total):
        shutil.rmtree(tmp_path / "adapter")
        shutil.copytree(tmp_path / "old", tmp_path / "adapter")
        killed_at(step, lambda: new.save_pretrained(tmp_path / "adapter"), tmp_path / "adapter")
        for load in (by_peft, by_transformers):
            try:
                found = logits(load(tmp_path / "adapter"))
            except ReftError as error:
                seen.append(error.code)
            except SafetensorError:
                assert load is by_transformers  # it opens the file before any of our code runs
            else:
                assert any(torch.equal(found, one) for one in expected), step
                seen.append("loaded")
    assert {"loaded", "integrity.file", "manifest.missing"} <= set(seen)


def by_peft(folder: Path) -> Any:
    return PeftModel.from_pretrained(base_model("llama"), folder)


def by_transformers(folder: Path) -> Any:
    model = base_model("llama")
    model.load_adapter(str(folder))
    return model
