"""Commands on the site name what there is: extras, targets of make, modules, and subcommands with their options."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec
from itertools import pairwise

import pytest
import typer

from .blocks import ROOT, blocks, pages

EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
OTHERS = {"torchrun", "accelerate", "srun", "export", "curl", "hf"}
"""Programs of others, whose options are theirs."""
WITH_SHELL = [page for page in pages() if blocks(page, "bash")]


def commands(page: str) -> list[list[str]]:
    """Words of each command line of a page; continued lines are joined, comments dropped."""
    found = []
    for block in blocks(page, "bash"):
        lines = block.replace("\\\n", " ").splitlines()
        words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
        found += [line for line in words if line]
    return found


def subcommands() -> dict[str, set[str]]:
    """Of `peft-reft`: name → options."""
    from peft_reft.integrations.cli.app import app

    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("page", WITH_SHELL)
def test_commands_are_there(page: str) -> None:
    pytest.importorskip("typer")
    for words in commands(page):
        program, *rest = words
        if program == "pip":
            named = [extra for word in rest for extra in re.findall(r"\[([\w,]+)\]", word)]
            assert {extra for names in named for extra in names.split(",")} <= EXTRAS, words
        elif program == "make":
            assert {word for word in rest if "=" not in word and not word.startswith("-")} <= TARGETS, words
        elif program == "python":
            modules = [name for flag, name in pairwise(rest) if flag == "-m"]
            ours = [name for name in modules if name.split(".")[0] in ("peft_reft", "examples", "tools", "benchmarks")]
            assert all(find_spec(name) for name in ours), words
        elif program == "peft-reft":
            known = subcommands()
            assert rest[0] in known, words
            given = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert rest[0] == "serve" or given <= known[rest[0]], words
        else:
            assert program in OTHERS, words
