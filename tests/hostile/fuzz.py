"""Mutated folders by the thousand: each is read or refused by name, never anything else.

    PYTHONPATH=tests python -m hostile.fuzz --executions 100000 --seed 1

The golden vectors are where it starts from: folders of one adapter and bundles, changed in their bytes, in the values
of their JSON and in their headers, three of four described anew so that digests hide nothing. A finding is

- an error that is none of the family, or one without a rule and a fix, or of 1,500 characters and more;
- a folder that is read, and whose weights safetensors refuses or reads otherwise;
- a folder that is read, and whose config is not read back from what is written of it, or is no `schema.json`'s.

What was run: 140,000 executions with seed 3, no finding, after seed 2 had found in its 8,589th that top-level values
which no group uses went unchecked (now the vectors `value_default_unused` and `value_default_unused_options`). Before
that, 1,000,000 executions with seed 7 of an earlier form of this program, which changed bytes alone, of one folder,
and asked for no rule, fix or schema: no finding, of the reader as it was then.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.listing import check_members
from peft_reft.hub_format.rank import check_ranks
from peft_reft.hub_format.schema import from_object, to_object
from peft_reft.hub_format.tensors import read_tensor_table

from .mutations import CONFIG, INDEX, WEIGHTS, Files, mutate

VECTORS = Path(__file__).parents[1] / "data" / "vectors" / "good"
MAX_MESSAGE = 1500
BLOCK = 10_000
"""Executions between two lines that tell how far it is."""


def corpus() -> list[Files]:
    """The files of every good vector."""
    return [
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "expected.json"
        }
        for folder in sorted(VECTORS.iterdir())
    ]


def run(executions: int, seed: int | str, starts: Sequence[Files], report: Callable[[str], object]) -> tuple[int, int]:
    """Mutates folders again and again, in memory where the system lets a folder lie there.

    Returns:
        How many were read, and how many results were findings.
    """
    source = random.Random(seed)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    held: Files = {}
    read = findings = 0
    with tempfile.TemporaryDirectory(dir=memory) as temporary:
        folder = Path(temporary)
        for number in range(executions):
            start = source.choice(starts)
            files = mutate(start, source)
            _place(folder, held, files)
            held = files
            accepted, problem = _look(folder, files)
            read += accepted
            if problem is not None:
                findings += 1
                changed = {name: files[name] for name in files if files[name] != start.get(name)}
                report(f"execution {number}: {problem}\n{changed!r}\n"[:6000])
    return read, findings


def _place(folder: Path, held: Mapping[str, bytes], files: Mapping[str, bytes]) -> None:
    for name in held.keys() - files.keys():
        (folder / name).unlink()
    for name, data in files.items():
        if held.get(name) != data:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _look(folder: Path, files: Files) -> tuple[bool, str | None]:
    try:
        if INDEX in files:
            check_members(folder)
            return True, None
        checked = check_folder(folder)
        assert checked is not None
        check_ranks(folder / WEIGHTS, checked.manifest.tensors, checked.groups)
    except ReftError as error:
        told = error.file and (error.rule or error.fix) and len(str(error)) < MAX_MESSAGE
        return False, None if told else f"{error.code} says too little or too much: {str(error)[:3000]}"
    except Exception as error:  # anything else is what is looked for
        return False, f"{type(error).__name__}: {error}"
    return True, _weights_differ(files[WEIGHTS], folder / WEIGHTS) or _config_differs(json.loads(files[CONFIG]))


def _weights_differ(data: bytes, path: Path) -> str | None:
    ours = {name: list(info.shape) for name, info in read_tensor_table(path).items()}
    try:
        theirs = {name: list(entry["shape"]) for name, entry in deserialize(data)}
    except SafetensorError as error:
        return f"safetensors refuses what was read: {error}"
    return None if ours == theirs else f"safetensors reads {theirs}, we {ours}"


def _config_differs(config: dict[str, Any]) -> str | None:
    stored = config["reft"]
    version = stored["spec_version"]
    values = from_object(stored, manifest_version=version)
    again = from_object(json.loads(json.dumps(to_object(values))))
    if again != json.loads(json.dumps(values)):
        return f"{values} is read back as {again}"
    if version == "1.0" and _VALID is not None and not _VALID(config):
        return f"schema.json refuses what was read: {config}"
    return None


def _validator() -> Callable[[Any], bool] | None:
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return None
    schema = json.loads((resources("peft_reft.hub_format") / "schema.json").read_text(encoding="utf-8"))
    valid: Callable[[Any], bool] = Draft202012Validator(schema).is_valid
    return valid


_VALID = _validator()


def main() -> int:
    """The command; exit status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    starts, read, found = corpus(), 0, 0
    for done in range(0, options.executions, BLOCK):
        block = min(BLOCK, options.executions - done)
        more = run(block, f"{options.seed}:{done}", starts, sys.stdout.write)
        read, found = read + more[0], found + more[1]
        sys.stdout.write(f"{done + block} executions, {read} read, {found} findings\n")
        sys.stdout.flush()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
