"""Functions → graph: parents from argument names, an order in which every variable follows its parents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from peft_reft.hub_format.errors import CausalModelError

__all__ = ["Graph", "parents_of", "topological_order"]

Graph = Mapping[str, tuple[str, ...]]
"""Variable → its parents."""


def parents_of(name: str, function: Callable[..., Any], known: set[str]) -> tuple[str, ...]:
    """The parents of a variable: the names of its function's arguments.

    An argument with a default that is no variable's name is a constant (`lambda X, step=step: X + step`).

    Args:
        name: of the variable, for errors.
        function: what computes it.
        known: all variables.

    Raises:
        CausalModelError: arguments cannot be read, an argument is no variable, or a parent has a default.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise CausalModelError(
            f"the function of {name!r} does not say its arguments: {function!r}",
            code="causal.function",
            value=name,
            rule="parents are the names of a function's arguments",
            fix=f"wrap it, e.g. lambda X: {getattr(function, '__name__', 'f')}(X)",
        ) from error
    parents = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise CausalModelError(
                f"the function of {name!r} has the argument {str(parameter)!r}",
                code="causal.function",
                value=str(parameter),
                rule="every argument is one parent, passed by its name",
            )
        constant = parameter.default is not parameter.empty
        if parameter.name in known:
            if constant:
                raise CausalModelError(
                    f"the function of {name!r} has a default for its parent {parameter.name!r}",
                    code="causal.function",
                    value=parameter.name,
                    rule="a parent's value comes from the model",
                    fix="take the default away, or rename a constant",
                )
            parents.append(parameter.name)
        elif not constant:
            raise CausalModelError(
                f"{name!r} has the parent {parameter.name!r}, which is no variable",
                code="causal.parent",
                value=parameter.name,
                rule=f"variables are: {', '.join(sorted(known))}",
                fix="add it to inputs or functions, or rename the argument",
            )
    return tuple(parents)


def topological_order(graph: Graph) -> tuple[str, ...]:
    """The variables, each after its parents; otherwise in the order given.

    Raises:
        CausalModelError: a cycle, which the message shows.
    """
    order: dict[str, None] = {}
    for start in graph:
        path = {start: iter(graph[start])}  # from start to a parent of a parent, and the parents still to be seen
        while path:
            name, parents = next(reversed(path.items()))
            parent = next(parents, None)
            if parent is None:
                order[name] = None
                del path[name]
            elif parent in path:
                raise _cycle([*path, parent], parent)
            elif parent not in order:
                path[parent] = iter(graph[parent])
    return tuple(order)


def _cycle(path: list[str], name: str) -> CausalModelError:
    cycle = " → ".join(reversed(path[path.index(name) :]))
    return CausalModelError(
        f"the variables {cycle} form a cycle",
        code="causal.cycle",
        value=cycle,
        rule="a causal model is acyclic: no variable depends on itself",
    )
