"""What a release holds: the check of the archives, one version everywhere, and extras that exist."""

from __future__ import annotations

import re
import runpy
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import peft_reft
from tools.release.bare import EXTRAS
from tools.release.contents import DATA, dead_links, description, names_in, problems

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository with a module and the data in each of the three folders."""
    for name in ("peft_reft/__init__.py", "hub_format/reader.py", "integrations/cli/main.py"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


MODULES = ("peft_reft/__init__.py", "peft_reft/hub_format/reader.py", "peft_reft/integrations/cli/main.py")
WHOLE = (*MODULES, *DATA, "peft_reft-1.dist-info/METADATA")


def wheel(folder: Path, names: tuple[str, ...]) -> Path:
    path = folder / "peft_reft-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_a_whole_wheel_has_no_fault(tree: Path, tmp_path: Path) -> None:
    assert problems(wheel(tmp_path, WHOLE), tree) == []


@pytest.mark.parametrize("name", [*MODULES, *DATA])
def test_a_file_that_is_not_there_is_a_fault(tree: Path, tmp_path: Path, name: str) -> None:
    (fault,) = problems(wheel(tmp_path, tuple(each for each in WHOLE if each != name)), tree)
    assert fault.endswith(f"lacks {name}")


@pytest.mark.parametrize("name", ["tests/test_x.py", "tools/__init__.py", "integrations/x.py", "peft_reft/old.py"])
def test_a_file_too_many_is_a_fault(tree: Path, tmp_path: Path, name: str) -> None:
    (fault,) = problems(wheel(tmp_path, (*WHOLE, name)), tree)
    assert fault.endswith(f"holds {name}")


def test_an_sdist_has_the_folders_of_the_repository(tree: Path, tmp_path: Path) -> None:
    names = ["peft_reft/__init__.py", "hub_format/reader.py", "integrations/cli/main.py", "hub_format/SPEC.md"]
    names += ["hub_format/schema.json", "peft_reft/py.typed", "peft_reft/sites/known_blocks.json", "pyproject.toml"]
    path = tmp_path / "peft_reft-1.tar.gz"
    (tmp_path / "empty").touch()
    with tarfile.open(path, "w:gz") as archive:
        for name in [*names, "benchmarks/x.py"]:
            archive.add(tmp_path / "empty", arcname=f"peft_reft-1/{name}")
    assert set(names) < set(names_in(path))
    assert problems(path, tree) == ["peft_reft-1.tar.gz holds benchmarks/x.py"]


def test_the_version_is_the_same_everywhere() -> None:
    assert "version" in PROJECT["dynamic"]
    assert version("peft-reft") == peft_reft.__version__
    assert f"\nversion: {peft_reft.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == peft_reft.__version__


def test_every_extra_is_resolved_and_all_names_those_that_go_together() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS) == set(extras)
    together = set(re.findall(r"[\w]+", extras["all"][0].partition("[")[2]))
    assert together <= set(extras)
    assert set(extras) - together == {"all", "demo", "dev", "docs", "notebooks", "release", "study", "typing", "vllm"}


def test_the_page_on_installing_tells_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert set(PROJECT["optional-dependencies"]) <= set(re.findall(r"`(\w+)`", page))


def metadata(description: str) -> str:
    return f"Metadata-Version: 2.4\nName: peft-reft\nDescription-Content-Type: text/markdown\n\n{description}"


DEAD = "[one](docs/one.md) and [two](#two), [three](https://example.org), `[x](y)`, [four]( CHANGELOG.md ) ![](a.svg)"
DEAD += '\n\n[five]: docs/five.md\n<a href="six.md">\n```\n[seven](seven.md)\n```\n'


def test_a_link_that_an_index_does_not_have_is_a_fault_of_wheel_and_sdist(tree: Path, tmp_path: Path) -> None:
    expected = ["docs/one.md", "CHANGELOG.md", "a.svg", "docs/five.md", "six.md"]
    assert dead_links(DEAD) == expected
    path = wheel(tmp_path, tuple(each for each in WHOLE if not each.endswith("METADATA")))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("peft_reft-1.dist-info/METADATA", metadata(DEAD))
    assert [fault.split()[5].rstrip(",") for fault in problems(path, tree)] == expected
    (tmp_path / "PKG-INFO").write_text(metadata("[é](é.md)"), "utf-8")
    with tarfile.open(tmp_path / "peft_reft-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "PKG-INFO", arcname="peft_reft-1/PKG-INFO")
    assert dead_links(description(tmp_path / "peft_reft-1.tar.gz")) == ["é.md"]


def test_the_readme_of_an_index_has_its_texts_and_no_dead_link() -> None:
    described = runpy.run_path(str(ROOT / "setup.py"))["described"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert dead_links(readme)
    assert dead_links(described(readme)) == []
    assert "[arXiv 2404.03592](https://arxiv.org/abs/2404.03592)" in described(readme)
    assert "[which versions](docs/compatibility.md#versions)" in readme
    assert "which versions (`docs/compatibility.md`)" in described(readme)
    assert "Changes: CHANGELOG.md." in described(readme)
