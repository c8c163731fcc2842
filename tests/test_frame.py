"""The frame: what the wheel holds, who may import whom, and that nothing of other libraries is altered."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import peft_reft

ROOT = Path(__file__).parents[1]
FLOORS = {"hub_format": 0, "peft_reft": 1, "integrations": 2}
FOLDERS = {"hub_format": "peft_reft/hub_format", "peft_reft": "peft_reft", "integrations": "peft_reft/integrations"}
"""Folder of the tree → where it lies in the wheel."""

PATCHES = """
import importlib, sys, types

NAMES = ("peft", "transformers", "trl", "huggingface_hub", "accelerate")
import peft, transformers, huggingface_hub, accelerate
import trl
import peft.tuners.tuners_utils, peft.utils.save_and_load, peft.mapping_func, peft.peft_model, peft.config
import transformers.modeling_utils, transformers.trainer, transformers.integrations.peft, transformers.generation
from trl import SFTTrainer, SFTConfig

def modules():
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in NAMES}

SKIPPED = {"__builtins__", "__warningregistry__", "_class_to_module", "_objects"}

def of_class(cls):
    return {f"{cls.__qualname__}.{name}": id(value) for name, value in vars(cls).items()
            if not name.startswith("_abc_") and name not in ("__weakref__", "_member_names_")}

def snapshot(known):
    seen = {}
    for name, module in known.items():
        for key, value in list(vars(module).items()):
            if key in SKIPPED:
                continue
            seen[f"{name}:{key}"] = id(value)
            if isinstance(value, type) and value.__module__.partition(".")[0] in NAMES:
                for attribute, there in of_class(value).items():
                    seen[f"{value.__module__}:{attribute}"] = there
            if isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] in NAMES:
                seen[f"{value.__module__}:{value.__qualname__}:code"] = id(value.__code__)
            if type(value) is dict and key.isupper():
                for entry, there in list(value.items()):
                    seen[f"{name}:{key}[{str(getattr(entry, 'value', entry))[:60]}]"] = id(there)
    return seen

keep = list(modules().values())  # keeps the objects alive, so that no id is used twice
known = modules()
before = snapshot(known)
import peft_reft, peft_reft.integrations
after = snapshot(known)
submodules = set(modules()) - set(known)
changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
for key in changed:
    module, _, name = key.partition(":")
    if f"{module}.{name}" in submodules:
        continue  # a submodule that was imported for the first time
    value = vars(known[module]).get(name) if module in known else None
    lazy = key not in before and isinstance(known.get(module), types.ModuleType) and hasattr(
        type(known[module]), "__getattr__") and value is not None and str(
        getattr(value, "__module__", "")).partition(".")[0] in NAMES
    if lazy:
        continue  # their own lazy import, kept by them after its first use
    print(key)
"""


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel that is built from a copy of the tree."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("build")
    tree, out = folder / "tree", folder / "out"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_and_no_other(wheel: set[str]) -> None:
    expected = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in sources(folder)
    }
    assert {name for name in wheel if name.endswith(".py")} == expected
    assert {"peft_reft/py.typed", "peft_reft/hub_format/SPEC.md", "peft_reft/hub_format/schema.json"} <= wheel
    tops = {name.partition("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"peft_reft"}


def imported(path: Path, package: str) -> set[str]:
    """Absolute names of the modules that a file imports; `package` is the one it lies in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def floor_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "peft_reft":
        return parts[0] if parts[0] in FLOORS else None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "peft_reft"


@pytest.mark.parametrize("folder", FLOORS)
def test_imports_go_down_only(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        inside = Path(FOLDERS[folder], path.relative_to(ROOT / folder))
        for module in imported(path, ".".join(inside.parent.parts)):
            floor = floor_of(module)
            assert floor is None or FLOORS[floor] <= FLOORS[folder], f"{inside} imports {module}"


def test_the_ground_floor_knows_neither_peft_nor_transformers() -> None:
    for path in sources("hub_format"):
        inside = Path("peft_reft/hub_format", path.relative_to(ROOT / "hub_format"))
        names = {module.partition(".")[0] for module in imported(path, ".".join(inside.parent.parts))}
        assert not names & {"peft", "transformers", "trl", "accelerate"}, inside


def test_every_public_name_is_there_and_in_order() -> None:
    assert peft_reft.__all__ == sorted(peft_reft.__all__)
    assert len(set(peft_reft.__all__)) == len(peft_reft.__all__)
    for name in peft_reft.__all__:
        assert getattr(peft_reft, name).__doc__ or name == "REFT", name


def test_the_lazy_names_of_the_integrations_are_there() -> None:
    pytest.importorskip("trl")
    from peft_reft import integrations

    for name in integrations.__all__:
        assert getattr(integrations, name).__doc__


@pytest.mark.parametrize("folder", FLOORS)
def test_every_all_names_what_there_is(folder: str) -> None:
    """No name twice, and each defined or imported in the file; one with a `__getattr__` is tested by importing it."""
    for path in sources(folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        listed: list[str] = []
        defined: set[str] = set()
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                defined |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            elif isinstance(node, ast.Assign):
                names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
                defined |= {*names}
                if names == ["__all__"]:
                    listed = ast.literal_eval(node.value)
        assert "__getattr__" in defined or not set(listed) - defined, path
        assert len(set(listed)) == len(listed), path


def test_importing_us_alters_nothing_of_other_libraries() -> None:
    """What is new: the enum's member, and the entries of the registries that `register_peft_method` fills."""
    pytest.importorskip("trl")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PATCHES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    changed = {line.partition(":")[2] for line in done.stdout.splitlines()}
    assert changed == {
        "PeftType.REFT",
        *(f"PEFT_TYPE_TO_{kind}_MAPPING[REFT]" for kind in ("CONFIG", "PREFIX", "TUNER")),
    }
