"""Pages of the API reference: one entry for every public name, in groups, made from docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from .groups import GROUPS, INTRODUCTIONS

__all__ = ["entries", "kinds", "modules_of", "page", "public_names"]

_FOLDERS = {"peft_reft.hub_format": "hub_format", "peft_reft.integrations": "integrations"}
"""Packages that lie elsewhere in the repository than in the wheel."""
_BARE = dict.fromkeys(
    ("members", "separate_signature", "show_signature", "show_symbol_type_heading", "show_symbol_type_toc"), "false"
)


def modules_of(package: str) -> list[str]:
    """The public modules that a page of the reference tells of: a package, and those below it that are public too."""
    below = {
        "peft_reft.causal": ["tasks"],
        "peft_reft.hub_format": ["errors"],
        "peft_reft.integrations": ["cli", "data", "evals", "lm_eval", "trl", "vllm"],
    }
    return [package, *(f"{package}.{name}" for name in below.get(package, []))]


def file_of(root: Path, module: str) -> Path:
    """A public module's file in the repository."""
    for package, folder in _FOLDERS.items():
        if module == package or module.startswith(f"{package}."):
            module = module.replace(package, folder, 1)
            break
    path = root / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(root: Path, module: str) -> list[str]:
    """`__all__` of a module, as it is written, without importing it; sub-modules that it lists are left out."""
    tree = ast.parse(file_of(root, module).read_text("utf-8"))
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    ]
    below = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module is None
        for alias in node.names
    }
    return [name for name in lists[0] if name not in below]


def kinds(root: Path) -> dict[str, str]:
    """The kinds that this package registers: the name that a config gives → the full name of the class."""
    found = {}
    for path in sorted((root / "peft_reft/interventions").glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            for mark in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "register_intervention":
                    found[ast.literal_eval(mark.args[0])] = f"peft_reft.interventions.{path.stem}.{node.name}"
    return found


def entries(root: Path, package: str) -> list[tuple[str, list[str]]]:
    """What the page of a package tells of.

    Args:
        root: the repository.
        package: one of `pages.REFERENCE`.

    Returns:
        Headings with full names, each name once.

    Raises:
        ValueError: the groups name what is not public, or leave out what is.
    """
    found: list[tuple[str, list[str]]] = []
    told: set[str] = set()
    for module in modules_of(package):
        names = [name for name in public_names(root, module) if name not in told]
        groups = GROUPS.get(module, {"Names" if module == package else f"`{module}`": sorted(names)})
        listed = [name for group in groups.values() for name in group]
        if sorted(listed) != sorted(names):
            raise ValueError(f"GROUPS[{module!r}] and __all__ differ in {sorted(set(listed) ^ set(names))}")
        found += [(title, [f"{module}.{name}" for name in group]) for title, group in groups.items() if group]
        told |= set(names)
    return found


def page(root: Path, package: str) -> str:
    """The Markdown of a page: what the package is, then a heading for each group and an entry for each name.

    Args:
        root: the repository.
        package: one of `pages.REFERENCE`.

    Returns:
        Markdown with mkdocstrings' `:::` lines.
    """
    parts = [f"# `{package}`", INTRODUCTIONS[package]]
    for title, names in entries(root, package):
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    if package == "peft_reft.interventions":
        parts.append("## The kinds")
        for name, kind in kinds(root).items():
            options = {"heading": name, "toc_label": name, **_BARE}
            parts.append("\n      ".join([f"::: {kind}\n    options:", *(f"{k}: {v}" for k, v in options.items())]))
    return "\n\n".join(parts) + "\n"
