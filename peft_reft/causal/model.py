"""`CausalModel`: a small acyclic model of what a network is thought to compute."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peft_reft.hub_format.errors import CausalModelError

from . import drawing
from .distribution import Distribution
from .graph import parents_of, topological_order
from .values import Values, among, branches, check_names, listed_values, marginal, output_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from networkx import DiGraph

__all__ = ["CausalModel", "Values"]


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
        check_names(names)
        self.inputs: dict[str, tuple[Any, ...] | None] = {
            name: None if values is None else listed_values(name, values) for name, values in inputs.items()
        }
        self.functions: dict[str, Callable[..., Any]] = dict(functions)
        known = set(names)
        self.parents: dict[str, tuple[str, ...]] = dict.fromkeys(inputs, ())
        for name, function in functions.items():
            self.parents[name] = parents_of(name, function, known)
        self.order: tuple[str, ...] = topological_order(self.parents)
        self.output: str = output_of(self.parents, self.functions, output)

    @property
    def variables(self) -> tuple[str, ...]:
        """All of them, each after its parents."""
        return self.order

    def run(self, inputs: Values) -> dict[str, Any]:
        """Every variable's value, or its `Distribution` where it is not certain.

        Args:
            inputs: every input variable's value or distribution; distributions of inputs are independent.

        Returns:
            Variable → value, or its `Distribution` where it is not certain.

        Raises:
            CausalModelError: an input is missing, unknown or not among its values, or a function fails.
        """
        return self.intervene(inputs, {})

    def intervene(self, inputs: Values, values: Values) -> dict[str, Any]:
        """Run with some variables set, whatever their parents say: do(V = v).

        Args:
            inputs: as for `run`.
            values: variable → value, or a distribution, drawn independently of everything else.

        Returns:
            Variable → value, or its `Distribution` where it is not certain.

        Raises:
            CausalModelError: as in `run`, or an unknown variable.
        """
        self._check_inputs(inputs)
        self._check_variables(values)
        given = {**inputs, **values}
        worlds: list[tuple[float, dict[str, Any]]] = [(1.0, {})]
        for name in self.order:
            worlds = [
                (probability * p, {**world, name: value})
                for probability, world in worlds
                for value, p in branches(given[name] if name in given else self._compute(name, world))
            ]
        return {name: marginal(name, [(p, world[name]) for p, world in worlds]) for name in self.order}

    def interchange(self, base: Values, sources: Mapping[str, Values]) -> dict[str, Any]:
        """Run on `base` with each named variable set to what it is in its source's run.

        Args:
            base: inputs.
            sources: variable → the inputs of its source.

        Returns:
            Variable → value, or its `Distribution` where it is not certain.

        Raises:
            CausalModelError: as in `run`, an unknown variable, or sources that are no mapping.
        """
        if not isinstance(sources, Mapping):
            raise CausalModelError(
                f"sources {sources!r}", code="causal.sources", value=sources, rule="they map a variable to inputs"
            )
        self._check_variables(sources)
        return self.intervene(base, {name: self.run(source)[name] for name, source in sources.items()})

    def descendants(self, name: str) -> set[str]:
        """The variables that depend on one, itself left out.

        Args:
            name: of a variable.

        Returns:
            Names.

        Raises:
            CausalModelError: no such variable.
        """
        self._check_variables({name: None})
        found: set[str] = set()
        for variable in self.order:
            if any(parent == name or parent in found for parent in self.parents[variable]):
                found.add(variable)
        return found

    def every_input(self) -> Iterator[dict[str, Any]]:
        """All combinations of the inputs' values.

        Raises:
            CausalModelError: an input whose values are not known.
        """
        domains = [self._domain(name) for name in self.inputs]
        for values in itertools.product(*domains):
            yield dict(zip(self.inputs, values, strict=True))

    def sample_inputs(self, count: int, *, seed: int) -> list[dict[str, Any]]:
        """`count` inputs, each value drawn uniformly, from a generator of their own.

        Args:
            count: how many.
            seed: of the generator.

        Returns:
            Inputs, variable → value.

        Raises:
            CausalModelError: an input whose values are not known.
        """
        generator = random.Random(seed)
        domains = {name: self._domain(name) for name in self.inputs}
        return [{name: generator.choice(domain) for name, domain in domains.items()} for _ in range(count)]

    def to_networkx(self) -> DiGraph[str]:
        """The graph as a networkx `DiGraph` (extra `causal`)."""
        return drawing.to_networkx(self)

    def to_dot(self, values: Values | None = None) -> str:
        """The graph in graphviz's language, the values of a run beside the names if they are given.

        Args:
            values: of a run, shown beside the names; None: names alone.

        Returns:
            The text of a `.dot` file.
        """
        return drawing.to_dot(self, values)

    def _repr_svg_(self) -> str:
        """What a notebook shows: inputs at the left, the output at the right; no package is needed for it."""
        return drawing.to_svg(self)

    def draw(self, values: Values | None = None, ax: Axes | None = None) -> Axes:
        """Draw it with networkx and matplotlib (extra `causal`).

        Args:
            values: of a run, shown beside the names.
            ax: where to draw; None makes a new figure.

        Returns:
            The axes.
        """
        return drawing.draw(self, values, ax)

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
                if allowed is not None and not among(possible, allowed, name):
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
