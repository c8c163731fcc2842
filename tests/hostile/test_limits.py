"""Folders as large as the format allows, or larger: read or refused in bounded memory and in a bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from vectors.adapters import adapter
from vectors.changes import resealed
from vectors.folder import CONFIG, MANIFEST, dump, write_files

from peft_reft.hub_format import check_folder, parse_positions
from peft_reft.hub_format.errors import ReftError

MEGABYTES = 500
ROOM = 4_100_000
READ = """
import resource, sys
from pathlib import Path
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ReftError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 * 1024 if sys.platform == "darwin" else 1024)

before = peak()
for folder in sys.argv[1:]:
    try:
        check_folder(Path(folder))
    except ReftError as error:
        pass
print(peak() - before)
"""


def config_with(old: str, new: str) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        files = adapter("limits", r=2, layers_to_transform=[0], positions="f2+l2").written()
        text = files[CONFIG].decode()
        assert old in text
        files[CONFIG] = text.replace(old, new, 1).encode()
        return resealed(files)

    return make


def many_tensors() -> dict[str, bytes]:
    made = adapter("limits", r=2, component="head_output[0]", layers_to_transform=[0])
    made.tensors = {f"base_model.model.a.b{n}.reft.reft_0.bias": ("F32", [2], b"\0" * 8) for n in range(8_000)}
    return made.written()


def annotated() -> dict[str, bytes]:
    files = adapter("limits", r=2, layers_to_transform=[0]).written()
    manifest = json.loads(files[MANIFEST])
    manifest["annotations"] = {"x": [[] for _ in range(ROOM // 4)]}
    return {**files, MANIFEST: json.dumps(manifest, separators=(",", ":")).encode()}


LARGE: dict[str, Callable[[], dict[str, bytes]]] = {
    "lists": config_with('"peft_type"', '"x": [' + "[]," * (ROOM // 3) + '[]], "peft_type"'),
    "objects": config_with('"peft_type"', '"x": [' + '{"a":{}},' * (ROOM // 9) + '{}], "peft_type"'),
    "keys": config_with('"peft_type"', "".join(f'"k{n}":0,' for n in range(ROOM // 12)) + '"peft_type"'),
    "annotations": annotated,
    "tensors": many_tensors,
}


@pytest.mark.slow
def test_the_largest_folders_are_read_in_bounded_memory(tmp_path: Path) -> None:
    for name, make in LARGE.items():
        write_files(tmp_path / name, make())
    done = subprocess.run(
        [sys.executable, "-c", READ, *(str(tmp_path / name) for name in LARGE)], capture_output=True, check=True
    )
    assert int(done.stdout) < MEGABYTES


LONG: dict[str, Callable[[], dict[str, bytes]]] = {
    "positions": config_with('"f2+l2"', '"' + "+".join(f"f{n}" for n in range(1, 400_000)) + '"'),
    "patterns": config_with('"layers_pattern": null', '"layers_pattern": [' + '"a",' * 400_000 + '"a"]'),
    "modules": config_with('"modules_to_save": null', '"modules_to_save": [' + '"a",' * 400_000 + '"a"]'),
    "kinds": config_with('"loreft": 1', ",".join(f'"k{n}": 1' for n in range(200_000))),
    "tokens": config_with(
        '"special_tokens": null',
        '"special_tokens": {"tokenizer": "sha256:'
        + "0" * 64
        + '", "ids": {'
        + ",".join(f'"{n}":1' for n in range(200_000))
        + "}}",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_long_lists_are_refused_in_few_words(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, LONG[name]())
    with pytest.raises(ReftError) as caught:
        check_folder(tmp_path)
    assert caught.value.file == CONFIG
    assert len(str(caught.value)) < 1500


def test_many_equal_groups_are_told_apart_without_comparing_them(tmp_path: Path) -> None:
    """64 groups of hundreds of units each, of which the file holds none."""
    terms = "+".join(f"f{n}" for n in range(1, 700))
    files = adapter("limits", r=2, layers_to_transform=[0]).written()
    config = json.loads(files[CONFIG])
    config["reft"]["interventions"] = [{"positions": terms, "share_weights": False}] * 64
    files[CONFIG] = dump(config)
    write_files(tmp_path, resealed(files))
    with pytest.raises(ReftError) as caught:
        check_folder(tmp_path)
    assert caught.value.code == "tensors.unfit"


def test_a_spec_as_long_as_allowed_is_read() -> None:
    text = "+".join(f"f{n}" for n in range(1, 830))
    assert len(text) <= 4096
    assert str(parse_positions(text)) == text
