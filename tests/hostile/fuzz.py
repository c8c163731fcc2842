"""Mutated folders by the thousand: each is read or refused by an error of our family, never anything else.

    PYTHONPATH=tests python -m hostile.fuzz --executions 100000 --seed 1

What the reader accepts, safetensors must accept too, with the same names, dtypes and shapes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, deserialize

from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from peft_reft.hub_format.tensors import read_tensor_table

from . import folders

NAMES = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
TOKENS = [
    *(b"null true false -0 -1 0 1e999 NaN 1.0 99999999999999999999 [] {} [[[[ }}}} ".split()),
    *(b'"" "\\ud800" "\\u0000" "loreft" "1.0" "f1" ".." "default" "self":1, "r":1, "F64" "BOOL" '.split()),
    b"\xff", b"\x00", b",", b":", b" ", b"\xef\xbb\xbf", b"\xd9\xa3",
]  # fmt: skip


def mutate(data: bytes, source: random.Random) -> bytes:
    """One to four changes: bits, bytes, tokens, pieces cut, doubled or moved."""
    held = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(held) + 1)
        end = min(len(held), at + source.choice((1, 2, 4, 16, 64)))
        choice = source.randrange(6)
        if choice == 0 and at < len(held):
            held[at] ^= 1 << source.randrange(8)
        elif choice == 1:
            held[at:end] = source.choice(TOKENS)
        elif choice == 2:
            held[at:at] = source.choice(TOKENS)
        elif choice == 3:
            del held[at:end]
        elif choice == 4:
            held[at:at] = held[at:end]
        else:
            there = source.randrange(len(held) + 1)
            piece = held[at:end]
            held[there:there] = piece
    return bytes(held)


def run(executions: int, seed: int, folder: Path, report: Callable[[str], object]) -> int:
    """Mutates a good folder again and again; returns how many results were findings.

    Half of the folders are described anew after the change, so that digests do not hide what lies behind them.
    """
    source = random.Random(seed)
    good = {name: (folder / name).read_bytes() for name in NAMES}
    findings = 0
    for number in range(executions):
        for name in NAMES:
            (folder / name).write_bytes(good[name])
        target = source.choice(NAMES)
        (folder / target).write_bytes(mutate(good[target], source))
        if target != MANIFEST_NAME and source.random() < 0.75:
            folders.redescribe(folder)
        for problem in (_check(lambda: check_folder(folder)), _compare(folder / WEIGHTS_NAME)):
            if problem is not None:
                findings += 1
                report(f"execution {number}, {target}: {problem}\n{(folder / target).read_bytes()[:4000]!r}\n")
    for name in NAMES:
        (folder / name).write_bytes(good[name])
    return findings


def _check(read: Callable[[], object]) -> str | None:
    try:
        read()
    except ReftError:
        return None
    except Exception as error:  # anything else is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


def _compare(weights: Path) -> str | None:
    try:
        ours = {name: list(info.shape) for name, info in read_tensor_table(weights).items()}
    except ReftError:
        return None
    except Exception as error:  # the same
        return f"{type(error).__name__}: {error}"
    try:
        theirs = {name: list(entry["shape"]) for name, entry in deserialize(weights.read_bytes())}
    except SafetensorError as error:
        return f"safetensors refuses what was read: {error}"
    return None if ours == theirs else f"safetensors reads {theirs}, we {ours}"


def main() -> int:
    """The command; exit status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = folders.good(Path(temporary, "adapter"), layers_to_transform=[0], r=1)
        found = run(options.executions, options.seed, folder, sys.stdout.write)
    sys.stdout.write(f"{options.executions} executions, {found} findings\n")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
