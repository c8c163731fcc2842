"""Every public callable of the package, with what its docstring says."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from types import FunctionType
from typing import Any

from peft_reft.hub_format import errors

PACKAGES = (
    "peft_reft",
    "peft_reft.causal",
    "peft_reft.causal.tasks",
    "peft_reft.continual",
    "peft_reft.hub_format",
    "peft_reft.integrations",
    "peft_reft.integrations.cli",
    "peft_reft.integrations.data",
    "peft_reft.integrations.evals",
    "peft_reft.integrations.trl",
    "peft_reft.integrations.trl.objectives",
    "peft_reft.interventions",
    "peft_reft.mixed",
)
"""What is public and importable with what the tests install; `lm_eval` and `vllm` need their own libraries."""


@dataclass(frozen=True)
class Callee:
    """A function, a method or a class.

    Args:
        name: full name, for messages.
        source: the function whose signature counts; of a class its `__init__`, None where that is not ours.
        body: the function whose body counts: the same, but for a data class.
        doc: the docstring, dedented.
        inherited: it overrides what another library's class, or a public class of ours, has and explains.
        known: parameters that are told elsewhere: by a string below a data class's field, or by a base class that is
            another library's.
    """

    name: str
    source: FunctionType | None
    body: FunctionType | None
    doc: str
    inherited: bool = False
    known: frozenset[str] = frozenset()

    @property
    def parameters(self) -> list[str]:
        """Names of what a caller passes."""
        if self.source is None or self.inherited:
            return []
        return [name for name in inspect.signature(self.source).parameters if name not in ("self", "cls", *self.known)]

    def section(self, title: str) -> str | None:
        """What stands indented below `title:`."""
        found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*)", self.doc + "\n", re.MULTILINE)
        return textwrap.dedent(found[1]) if found else None

    def items(self, title: str) -> list[str]:
        """The names before the colons of a section."""
        found = re.findall(r"^([*\w][*\w., ]*?):(?= |$)", self.section(title) or "", re.MULTILINE)
        return [name.strip().lstrip("*") for names in found for name in names.split(",")]

    @property
    def told(self) -> list[str]:
        """The parameters that it explains; a data class calls them attributes."""
        fields_too = self.items("Attributes") if is_dataclass_init(self.source) else []
        return [*self.items("Args"), *fields_too]

    @property
    def raised(self) -> set[type[BaseException]]:
        """Classes that the body raises itself."""
        if self.body is None:
            return set()
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.body)))
        calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
        names = {ast.unparse(call.func if isinstance(call, ast.Call) else call) for call in calls}
        found = {self.exception(name) for name in names}
        return {each for each in found if each is not None and each is not NotImplementedError}

    def exception(self, name: str) -> type[BaseException] | None:
        """The class of that name: a builtin, one of the format's errors, or one that the module knows."""
        known = {**vars(builtins), **vars(errors), **(self.body.__globals__ if self.body else {})}
        found = known.get(name.rpartition(".")[2])
        return found if isinstance(found, type) and issubclass(found, BaseException) else None


def is_dataclass_init(function: FunctionType | None) -> bool:
    """Whether it was made by `dataclasses`, and has no file."""
    return function is not None and function.__code__.co_filename == "<string>"


def unwrapped(value: Any) -> FunctionType | None:
    """The function behind a method, a class method or a decorated function."""
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) and ours(value) else None


def ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "peft_reft"


def told_below(cls: type) -> frozenset[str]:
    """Fields of a data class that have a string of their own below them."""
    if not is_dataclass(cls):
        return frozenset()
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    pairs = pairwise(tree.body) if isinstance(tree, ast.ClassDef) else ()
    return frozenset(
        field.target.id
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    )


def theirs(cls: type) -> frozenset[str]:
    """Fields that a data class has from another library's."""
    above = [base for base in cls.__mro__[1:] if is_dataclass(base) and not ours(base)]
    return frozenset(field.name for base in above for field in fields(base))


def of_class(name: str, cls: type) -> Iterator[Callee]:
    """A class and the public methods that it defines."""
    start = unwrapped(vars(cls)["__init__"]) if "__init__" in vars(cls) else None
    body = unwrapped(vars(cls).get("__post_init__")) if is_dataclass(cls) else start
    yield Callee(name, start, body, inspect.cleandoc(cls.__doc__ or ""), known=told_below(cls) | theirs(cls))
    for method, value in vars(cls).items():
        function = unwrapped(value)
        if method.startswith("_") or function is None:
            continue
        above = [base for base in cls.__mro__[1:] if method in vars(base)]
        explained = any(not ours(base) or vars(base)[method].__doc__ for base in above)
        yield Callee(f"{name}.{method}", function, function, inspect.cleandoc(function.__doc__ or ""), explained)


def callees() -> list[Callee]:
    """Every public callable once, by the first package that names it."""
    found: list[Callee] = []
    seen: list[Any] = []
    for package in PACKAGES:
        module = import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if any(value is other for other in seen) or not isinstance(value, Callable):  # type: ignore[arg-type]
                continue
            seen.append(value)
            full = f"{package}.{name}"
            if isinstance(value, type):
                found += of_class(full, value)
            elif (function := unwrapped(value)) is not None:
                found.append(Callee(full, function, function, inspect.cleandoc(value.__doc__ or "")))
    return found
