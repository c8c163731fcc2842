"""The program: exit statuses, errors as lines or JSON and never as a traceback, hostile text made harmless."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hub.folders import ended, started

from peft_reft.integrations.cli import main
from peft_reft.integrations.cli.report import plain

from .conftest import Command

HOSTILE = "\x1b[2J[bold red]x[/] \u202egnp.exe\x07\r\n\x9b31m\x7f"


def test_it_can_be_imported_again_after_it_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert importlib.import_module("peft_reft.integrations.cli").main is main


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("x")
    status, said = command("inspect", tmp_path / "file")
    assert (status, said["error"]["code"]) == (1, "source.folder")
    status, said = command("validate", tmp_path)
    assert (status, said["error"]["code"]) == (1, "adapter.missing")
    status, said = command("validate", tmp_path / "nowhere")
    assert (status, said["error"]["code"]) == (1, "hub.name")


@pytest.mark.parametrize("arguments", [[], ["nope"], ["inspect"], ["inspect", "a", "--nope"]])
def test_wrong_usage_is_two_as_json_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "peft-reft" in printed.err
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


@pytest.mark.parametrize("name", ["convert", "diff", "export-prefix", "inspect", "pull", "push", "show", "validate"])
def test_help_is_no_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert name in capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_no_command_at_all_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("peft-reft: Missing command.\n  See `peft-reft --help`.")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"peft-reft {version('peft-reft')}\n"


@pytest.mark.parametrize(("arguments", "help_of"), [(["show", "base"], "peft-reft show"), (["shwo"], "peft-reft")])
def test_wrong_usage_names_the_help_that_tells_more(
    arguments: list[str], help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert f"See `{help_of} --help`." in capsys.readouterr().err


def test_hostile_text_reaches_the_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a value, in a file, in an argument: no control character, no change of direction, no markup."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": HOSTILE}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for arguments in (["inspect", str(tmp_path)], ["validate", str(tmp_path)], [HOSTILE], ["inspect", HOSTILE]):
        for options in ([], ["--json"]):
            assert main([*arguments, *options]) in (1, 2)
            printed = capsys.readouterr()
            text = (printed.out + printed.err).replace("\n", "")
            assert text.isprintable(), arguments
            assert text
    main(["inspect", "[bold]no such[/bold]"])
    assert "[bold]no such[/bold]" in capsys.readouterr().err


def test_plain_text_keeps_letters_and_marks_what_it_cuts() -> None:
    assert plain("größe 模型") == "größe 模型"
    assert plain(HOSTILE).startswith(r"\x1b[2J[bold red]x[/] \u202egnp")
    assert plain("a" * 1000).endswith("a…")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process without the package is forked")
@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_its_extra_it_says_what_to_install(name: str, tmp_path: Path) -> None:
    said = tmp_path / "said"

    def without() -> None:
        for loaded in [*sys.modules]:
            if loaded.startswith(("peft_reft.integrations.cli", f"{name}.")):
                del sys.modules[loaded]
        sys.modules[name] = None  # type: ignore[assignment]  # what cannot be imported
        with said.open("w") as sys.stderr:
            status = importlib.import_module("peft_reft.integrations.cli").main(["inspect", "."])
        os._exit(status)

    assert ended(started(without)) == 1
    assert "pip install 'peft-reft[cli]'" in said.read_text()
    assert "Traceback" not in said.read_text()
