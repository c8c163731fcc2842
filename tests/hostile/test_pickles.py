"""Pickles: never opened but by PEFT's own load, and there only after a look at what they would do."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed.tiny import mixed_model
from peft import PeftModel

from contract.tiny import base_model, reft_model
from peft_reft import MixedReftModel
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.bundle import Member, write_index
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, describe_file
from peft_reft.hub_format.pickles import check_pickle
from peft_reft.integrations.cli import main

from . import folders as f


class Touch:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path) -> Path:
    reft_model("llama", positions="f2", r=2).save_pretrained(str(folder), safe_serialization=False)
    return folder


def with_program(program: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def described(folder: Path, data: bytes) -> None:
    (folder / PICKLE_NAME).write_bytes(data)
    infos = [describe_file(folder, name).to_json() for name in (CONFIG_NAME, PICKLE_NAME)]
    f.edit(folder / MANIFEST_NAME, lambda content: content.update(files=infos))


def refused(load: Callable[[], object]) -> None:
    with pytest.raises(ReftError) as caught:
        load()
    assert (caught.value.code, caught.value.file) == ("weights.pickle", PICKLE_NAME), caught.value


def hostile(mark: Path) -> dict[str, bytes]:
    plain = pickle.dumps({"a": Touch(mark)}, protocol=2)
    saved = io.BytesIO()
    torch.save({"a": Touch(mark)}, saved)
    return {
        "a bare pickle": plain,
        "saved by torch": saved.getvalue(),
        "newer protocol": with_program(pickle.dumps({"a": Touch(mark)}, protocol=4)),
        "compressed": with_program(pickle.dumps({}, protocol=2), compression=zipfile.ZIP_DEFLATED),
        "torn program": with_program(plain[:-1]),
        "no program": with_program(b""),
        "no zip": b"PK\x03\x04" + b"\0" * 64,
        "empty": b"",
    }


HOSTILE = tuple(hostile(Path("mark")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_does_more_than_build_tensors_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    folder, mark = pickled(tmp_path / "adapter"), tmp_path / "mark"
    described(folder, hostile(mark)[name])
    refused(lambda: PeftModel.from_pretrained(base_model("llama"), str(folder)))
    refused(lambda: reft_model("llama").load_adapter(str(folder), "second"))
    refused(lambda: check_folder(folder, pickles=True))
    assert not mark.exists()


def test_what_torch_saves_passes(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    held = {f"{'long name' * n}{kind}": torch.ones(2, 3).to(kind) for n, kind in enumerate(kinds)}
    torch.save({**held, "view": torch.ones(4, 4).T, **{f"t{n}": torch.ones(1) for n in range(300)}}, tmp_path / "a")
    check_pickle(tmp_path / "a")


def test_outside_of_pefts_load_no_pickle_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pickled(tmp_path / "adapter")
    PeftModel.from_pretrained(base_model("llama"), str(folder))
    refused(lambda: check_folder(folder))
    assert main(["validate", str(folder), "--json"]) == 1
    assert '"weights.pickle"' in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 1


def test_a_pickle_in_a_bundle_is_refused(tmp_path: Path) -> None:
    mixed_model().save_pretrained(str(tmp_path))
    (tmp_path / "reft" / "edit" / PICKLE_NAME).write_bytes(hostile(tmp_path / "mark")["a bare pickle"])
    write_index(tmp_path, [Member.at("default", "lora"), Member.at("edit", "reft")])
    refused(lambda: MixedReftModel.from_pretrained(base_model("llama"), str(tmp_path)))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "pytorch_model.bin", "adapter_model.pt"])
def test_pickles_of_other_names_are_left_alone(tmp_path: Path, name: str) -> None:
    folder = f.good(tmp_path / "adapter")
    (folder / name).write_bytes(hostile(tmp_path / "mark")["saved by torch"])
    assert check_folder(folder) is not None
    PeftModel.from_pretrained(base_model("llama"), str(folder))
    assert not (tmp_path / "mark").exists()


def test_a_pickled_view_larger_than_its_bytes_is_refused_without_allocating(tmp_path: Path) -> None:
    """A storage of one number can be viewed as a matrix of 2⁶⁰."""
    folder = pickled(tmp_path / "adapter")
    held = torch.load(folder / PICKLE_NAME, weights_only=True)
    name = next(iter(held))
    held[name] = torch.ones(1).as_strided((2**30, 2**30), (0, 0))
    file = io.BytesIO()
    torch.save(held, file)
    described(folder, file.getvalue())
    with pytest.raises(ReftError) as caught:
        PeftModel.from_pretrained(base_model("llama"), str(folder))
    assert caught.value.code == "integrity.tensors"
