"""Values of a causal model's variables: possible ones, those with probabilities, and the names that they go by."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from peft_reft.hub_format.errors import CausalModelError

from .distribution import Distribution

__all__ = ["Values", "among", "branches", "check_names", "listed_values", "marginal", "output_of"]

Values = Mapping[str, Any]
"""Variable → value."""


def check_names(names: list[str]) -> None:
    """Refuse what cannot be an argument's name, and a name that stands twice."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise CausalModelError(
                f"variable {name!r}",
                code="causal.name",
                value=name,
                rule="a name can be a Python argument: letters, digits and _, no digit first",
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CausalModelError(
            f"{twice[0]!r} is an input and has a function",
            code="causal.name",
            value=twice[0],
            rule="a variable is given or computed; to set a computed one use intervene",
        )


def output_of(parents: Mapping[str, tuple[str, ...]], functions: Mapping[str, Any], output: str | None) -> str:
    """The variable that the network\'s output stands for: the one said, or the only one that no other reads."""
    if output is not None:
        if not isinstance(output, str) or output not in functions:
            raise CausalModelError(
                f"output={output!r}", code="causal.output", value=output, rule=f"it is one of: {', '.join(functions)}"
            )
        return output
    read = {parent for found in parents.values() for parent in found}
    leaves = [name for name in functions if name not in read]
    if len(leaves) != 1:
        raise CausalModelError(
            f"the output cannot be told: {', '.join(leaves) or 'no variable'} is read by no other",
            code="causal.output",
            value=leaves,
            fix="name it with output=",
        )
    return leaves[0]


def branches(value: Any) -> Iterable[tuple[Any, float]]:
    """A value with its probability; of a distribution each of its values."""
    return value.items() if isinstance(value, Distribution) else [(value, 1.0)]


def listed_values(name: str, values: Any) -> tuple[Any, ...]:
    """The possible values of an input, one or more."""
    listed = tuple(values) if isinstance(values, Iterable) else ()
    if not listed:
        raise CausalModelError(
            f"input {name!r} has the values {values!r}",
            code="causal.domain",
            value=values,
            rule="they are listed, one or more; None where any value is allowed",
        )
    return listed


def among(value: Any, allowed: tuple[Any, ...], name: str) -> bool:
    """Whether a value is one of those allowed."""
    try:
        return value in allowed
    except (ValueError, RuntimeError) as error:  # arrays and tensors have no one truth value
        raise CausalModelError(
            f"input {name}={value!r} cannot be compared",
            code="causal.inputs",
            value=value,
            rule="values are compared with ==, which must give True or False",
            fix=f"use tuples or numbers, or let it be any: inputs={{{name!r}: None}}",
        ) from error


def marginal(name: str, worlds: list[tuple[float, Any]]) -> Any:
    """The value where all worlds agree, else the distribution."""
    if len(worlds) == 1:
        return worlds[0][1]
    table: dict[Any, float] = {}
    for probability, value in worlds:
        if not isinstance(value, Hashable):
            raise CausalModelError(
                f"{name} may be {value!r}, with probability {probability:.3g}",
                code="causal.value",
                value=value,
                rule="values with probabilities are hashable",
                fix="return a tuple instead of a list",
            )
        table[value] = table.get(value, 0.0) + probability
    return next(iter(table)) if len(table) == 1 else Distribution(table)
