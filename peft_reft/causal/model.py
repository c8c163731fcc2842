"""`CausalModel`: a small acyclic model of what a network is thought to compute."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peft_reft.hub_format.errors import CausalModelError

from .distribution import Distribution
from .graph import parents_of, topological_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from networkx import DiGraph

__all__ = ["CausalModel", "Values"]

Values = Mapping[str, Any]
"""Variable → value."""


class CausalModel:
    """Variables, each a function of its parents: the high-level side of a causal abstraction (arXiv 2106.02997).

    A function's argument names are its parents. A function may return a `Distribution`; then `run` gives the exact
    distribution of every variable that depends on it.

    Args:
        functions: variable → function, in any order.
        inputs: variable → its possible values, or None where any value is allowed (such a model cannot be sampled).
        output: the variable that the network's output stands for; by default the only one that no other reads.

    Raises:
        CausalModelError: a cycle, an unknown parent, a name used twice, no output that can be told.

    >>> total = CausalModel(
    ...     {"S1": lambda X, Y: X + Y, "S2": lambda S1, Z: S1 + Z}, inputs={name: range(10) for name in "XYZ"}
    ... )
    >>> total.run({"X": 1, "Y": 2, "Z": 3})["S2"]
    6
    >>> total.interchange({"X": 1, "Y": 2, "Z": 3}, {"S1": {"X": 4, "Y": 5, "Z": 6}})["S2"]
    12
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        *,
        inputs: Mapping[str, Iterable[Any] | None],
        output: str | None = None,
    ) -> None:
        for what, given in (("functions", functions), ("inputs", inputs)):
            if not isinstance(given, Mapping):
                raise CausalModelError(
                    f"{what} are {type(given).__name__}",
                    code="causal.model",
                    value=type(given).__name__,
                    rule="functions map a variable to its function, inputs a variable to its values or None",
                )
        names = [*inputs, *functions]
        _check_names(names)
        self.inputs: dict[str, tuple[Any, ...] | None] = {
            name: None if values is None else _values(name, values) for name, values in inputs.items()
        }
        self.functions = dict(functions)
        known = set(names)
        self.parents: dict[str, tuple[str, ...]] = dict.fromkeys(inputs, ())
        for name, function in functions.items():
            self.parents[name] = parents_of(name, function, known)
        self.order = topological_order(self.parents)
        self.output = _output(self.parents, self.functions, output)

    @property
    def variables(self) -> tuple[str, ...]:
        """All of them, each after its parents."""
        return self.order

    def run(self, inputs: Values) -> dict[str, Any]:
        """Every variable's value, or its `Distribution` where it is not certain.

        Args:
            inputs: every input variable's value or distribution; distributions of inputs are independent.

        Raises:
            CausalModelError: an input is missing, unknown or not among its values, or a function fails.
        """
        return self.intervene(inputs, {})

    def intervene(self, inputs: Values, values: Values) -> dict[str, Any]:
        """Run with some variables set, whatever their parents say: do(V = v).

        Args:
            inputs: as for `run`.
            values: variable → value, or a distribution, drawn independently of everything else.
        """
        self._check_inputs(inputs)
        self._check_variables(values)
        given = {**inputs, **values}
        worlds: list[tuple[float, dict[str, Any]]] = [(1.0, {})]
        for name in self.order:
            worlds = [
                (probability * p, {**world, name: value})
                for probability, world in worlds
                for value, p in _branches(given[name] if name in given else self._compute(name, world))
            ]
        return {name: _marginal(name, [(p, world[name]) for p, world in worlds]) for name in self.order}

    def interchange(self, base: Values, sources: Mapping[str, Values]) -> dict[str, Any]:
        """Run on `base` with each named variable set to what it is in its source's run.

        Args:
            base: inputs.
            sources: variable → the inputs of its source.
        """
        if not isinstance(sources, Mapping):
            raise CausalModelError(
                f"sources {sources!r}", code="causal.sources", value=sources, rule="they map a variable to inputs"
            )
        self._check_variables(sources)
        return self.intervene(base, {name: self.run(source)[name] for name, source in sources.items()})

    def descendants(self, name: str) -> set[str]:
        """The variables that depend on one, itself left out."""
        self._check_variables({name: None})
        found: set[str] = set()
        for variable in self.order:
            if any(parent == name or parent in found for parent in self.parents[variable]):
                found.add(variable)
        return found

    def every_input(self) -> Iterator[dict[str, Any]]:
        """All combinations of the inputs' values."""
        domains = [self._domain(name) for name in self.inputs]
        for values in itertools.product(*domains):
            yield dict(zip(self.inputs, values, strict=True))

    def sample_inputs(self, count: int, *, seed: int) -> list[dict[str, Any]]:
        """`count` inputs, each value drawn uniformly, from a generator of their own."""
        generator = random.Random(seed)
        domains = {name: self._domain(name) for name in self.inputs}
        return [{name: generator.choice(domain) for name, domain in domains.items()} for _ in range(count)]

    def to_networkx(self) -> DiGraph:
        """The graph as a networkx `DiGraph` (extra `causal`)."""
        from .drawing import to_networkx

        return to_networkx(self)

    def to_dot(self, values: Values | None = None) -> str:
        """The graph in graphviz's language, the values of a run beside the names if they are given."""
        from .drawing import to_dot

        return to_dot(self, values)

    def draw(self, values: Values | None = None, ax: Axes | None = None) -> Axes:
        """Draw it with networkx and matplotlib (extra `causal`).

        Args:
            values: of a run, shown beside the names.
            ax: where to draw; None makes a new figure.
        """
        from .drawing import draw

        return draw(self, values, ax)

    def _compute(self, name: str, world: Values) -> Any:
        arguments = {parent: world[parent] for parent in self.parents[name]}
        try:
            return self.functions[name](**arguments)
        except Exception as error:
            raise CausalModelError(
                f"the function of {name!r} failed on {arguments!r}: {error!r}",
                code="causal.function",
                value=name,
                rule="a function gives a value for all values of its parents",
            ) from error

    def _domain(self, name: str) -> tuple[Any, ...]:
        values = self.inputs[name]
        if values is None:
            raise CausalModelError(
                f"the values of input {name!r} are not known",
                code="causal.domain",
                value=name,
                fix=f"name them: inputs={{{name!r}: range(10), …}}",
            )
        return values

    def _check_inputs(self, inputs: Values) -> None:
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.inputs):
            shown = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else repr(inputs)
            raise CausalModelError(
                f"inputs {shown} were given",
                code="causal.inputs",
                value=shown,
                rule=f"the inputs are: {', '.join(self.inputs)}",
            )
        for name, value in inputs.items():
            allowed = self.inputs[name]
            for possible in value if isinstance(value, Distribution) else (value,):
                if allowed is not None and not _among(possible, allowed, name):
                    raise CausalModelError(
                        f"input {name}={possible!r}",
                        code="causal.inputs",
                        value=possible,
                        rule=f"it is one of: {', '.join(map(repr, allowed[:12]))}{', …' if len(allowed) > 12 else ''}",
                    )

    def _check_variables(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.parents:
                raise CausalModelError(
                    f"{name!r} is no variable",
                    code="causal.variable",
                    value=name,
                    rule=f"variables are: {', '.join(self.order)}",
                )

    def __repr__(self) -> str:
        arrows = ", ".join(f"{name}({', '.join(self.parents[name])})" for name in self.order if name in self.functions)
        return f"CausalModel({', '.join(self.inputs)} → {arrows}; output {self.output})"


def _check_names(names: list[str]) -> None:
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


def _output(parents: Mapping[str, tuple[str, ...]], functions: Mapping[str, Any], output: str | None) -> str:
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


def _branches(value: Any) -> Iterable[tuple[Any, float]]:
    return value.items() if isinstance(value, Distribution) else [(value, 1.0)]


def _values(name: str, values: Any) -> tuple[Any, ...]:
    listed = tuple(values) if isinstance(values, Iterable) else ()
    if not listed:
        raise CausalModelError(
            f"input {name!r} has the values {values!r}",
            code="causal.domain",
            value=values,
            rule="they are listed, one or more; None where any value is allowed",
        )
    return listed


def _among(value: Any, allowed: tuple[Any, ...], name: str) -> bool:
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


def _marginal(name: str, worlds: list[tuple[float, Any]]) -> Any:
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
