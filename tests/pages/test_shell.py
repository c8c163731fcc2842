"""Every command line on every page of the site is executed: here, or by what `elsewhere` and the table below name."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from peft_reft.integrations.cli import main
from tools.release.bare import EXTRAS, install_lines
from tools.site.blocks import SHELLS, blocks, command, commands, fences, pages

from .elsewhere import ELSEWHERE
from .places import PLACES, ROOT, execute, fitted, programs

BY_A_TEST = {
    ("docs/cli.md", "peft-reft "): "tests/cli/test_page.py",
    ("docs/serving.md", "peft-reft serve me/base --engine transformers"): "tests/pages/test_servers.py",
    ("docs/serving.md", "python -m peft_reft -m transformers"): "tests/pages/test_servers.py",
    ("docs/first_adapter.md", "curl "): "tests/pages/test_servers.py",
    ("docs/recipes/serving.md", "curl "): "tests/pages/test_servers.py",
    ("examples/distributed/README.md", "torchrun "): "tests/pages/test_launchers.py",
    ("examples/distributed/README.md", "accelerate launch "): "tests/pages/test_launchers.py",
    ("examples/distributed/README.md", "export HEAD="): "tests/pages/test_launchers.py",
    ("examples/distributed/README.md", "srun "): "tests/pages/test_launchers.py",
    ("docs/recipes/several_gpus.md", "torchrun "): "tests/pages/test_launchers.py",
    ("docs/recipes/several_gpus.md", "accelerate launch "): "tests/pages/test_launchers.py",
}
"""Page and how lines begin → the test that executes them as they stand on the page."""
LANGUAGES = {"python", "text", "mermaid", *SHELLS}
"""Python: `test_python`; charts: `make docs` draws them, tests/tools/test_site.py too."""
TEXT = {
    "docs/positions.md": "tests/integrations/test_show_page.py",
    "docs/first_adapter.md": "tests/test_readme.py",
    "docs/causal.md": "tests/causal/test_page.py",
    "docs/coming_from_pyreft.md": "tests/pages/test_peers.py",
}
"""Page with blocks of text → the test that compares them with what is printed, or runs them elsewhere."""
WITH_SHELL = [page for page in pages() if blocks(page, *SHELLS)]


def executed_by(page: str, line: str) -> str | None:
    """The file that executes a line, or None where this one does."""
    if line in ELSEWHERE:
        return ELSEWHERE[line].by
    return next((test for (at, start), test in BY_A_TEST.items() if at == page and line.startswith(start)), None)


def here(page: str) -> list[str]:
    return [line for line in commands(page) if executed_by(page, line) is None]


def test_every_line_is_executed() -> None:
    """A new line is either of a page that this file executes, or has its row."""
    assert {page: here(page) for page in WITH_SHELL if here(page) and page not in PLACES} == {}
    assert all(here(page) for page in PLACES)


def test_every_row_is_of_a_line_that_is_there() -> None:
    everything = {line for page in WITH_SHELL for line in commands(page)}
    assert set(ELSEWHERE) <= everything
    for page, start in BY_A_TEST:
        assert any(line.startswith(start) for line in commands(page)), (page, start)


def test_what_is_executed_elsewhere_is_so() -> None:
    for line, row in ELSEWHERE.items():
        assert row.holds in (ROOT / row.by).read_text("utf-8"), line
    for (page, _), test in BY_A_TEST.items():
        text = (ROOT / test).read_text("utf-8")
        assert page in text or Path(page).name in text, (page, test)
    for line, row in ELSEWHERE.items():
        if row.by == "tools/release/bare.py" and "vllm" not in line:
            assert line in install_lines(), line
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", line)))) <= set(EXTRAS)


def test_blocks_of_other_languages_have_a_test() -> None:
    """JSON, YAML or TOML on a page would be parsed and used here; there is none."""
    for page in pages():
        assert {language for language, _ in fences(page)} <= LANGUAGES, page
        marks = re.findall(r"^ *```", (ROOT / page).read_text("utf-8"), re.MULTILINE)
        assert len(marks) == 2 * len(fences(page)), page
    assert set(TEXT) == {page for page in pages() if blocks(page, "text")}
    for page, test in TEXT.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8") or "render.PAGE" in (ROOT / test).read_text("utf-8")


@pytest.mark.parametrize("page", PLACES)
def test_the_lines_of_a_page_run_one_after_another(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    work = tmp_path / "work"
    work.mkdir()
    PLACES[page](work)
    monkeypatch.chdir(work)
    path = programs(tmp_path / "bin")
    for line in here(page):
        if line.startswith("peft-reft "):
            assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
        else:
            execute(fitted(page, line), work, path)


@pytest.mark.parametrize(
    "line", sorted({line for page in WITH_SHELL for line in commands(page) if re.fullmatch(r"make [\w-]+", line)})
)
def test_a_target_of_make_expands_to_programs_that_are_there(line: str) -> None:
    """What they do is tested by what `elsewhere` names; no target that it needs is missing, nor a module."""
    done = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"/python -m ([a-z][\w.]+)", done.stdout)
    assert modules
    assert all(name in ("pip", "pytest", "venv") or find_spec(name) for name in modules), modules


def test_inline_commands_name_what_there_is() -> None:
    """Subcommands and options of `peft-reft`, targets of make, in the prose of the pages."""
    import typer

    from peft_reft.integrations.cli.app import app

    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    known = {
        name: {option for parameter in found.params for option in parameter.opts}
        for name, found in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for page in pages():
        prose = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for words in map(str.split, re.findall(r"`((?:peft-reft|make) [^`<]+)`", prose)):
            if words[0] == "make":
                named = {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)}
                assert named <= targets, (page, words)
            elif words[1] not in ("serve", "COMMAND", "--version"):
                assert words[1] in known, (page, words)
                assert {w.partition("=")[0] for w in words if w.startswith("--")} <= known[words[1]], (page, words)


def test_a_command_is_found_by_its_start() -> None:
    assert command("docs/cli.md", "peft-reft validate") == "peft-reft validate my-reft"
    with pytest.raises(ValueError, match=r"14 commands of docs/cli\.md begin with 'peft-reft'"):
        command("docs/cli.md", "peft-reft")
