"""Finds the user's expressions that compute a value between two modules of a traced JAX model or step."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compare.jax_side.labels import Label
from compare.jax_side.lines import expression
from compare.jax_side.primitives import NAME, Program, is_literal, programs
from compare.step.observation import Port
from compare.step.places import Source


class Computed:
    """A traced program, of which each operation knows the line that it comes from.

    Args:
        equations: Its operations.
        of_port: The variable that each module's input or output is.

    """

    def __init__(self, equations: Sequence[Any], of_port: Mapping[Port, Any]) -> None:
        self._equations, self._of_port = equations, of_port
        self._makers = {variable: eqn for eqn in equations for variable in eqn.outvars}

    @classmethod
    def of_model(cls, program: Any, ports: Mapping[Port, int]) -> "Computed":
        """Read a forward pass that gives all modules' inputs and outputs; `ports` has their numbers."""
        _, _, _, equations, outputs = Program.of(program)
        found = {port: outputs[number] for port, number in ports.items() if not is_literal(outputs[number])}
        return cls(equations, found)

    @classmethod
    def of_step(cls, program: Any) -> "Computed":
        """Read a step in which modules' inputs and outputs are named, also within nested programs: see `labels.py`."""
        equations = list(_all(program))
        calls: Counter[tuple[str, str, str]] = Counter()
        found = {}
        for eqn in equations:
            label = Label.of(eqn.params["name"]) if eqn.primitive.name == NAME else None
            if label is not None and label.what in ("input", "output"):
                key = (label.what, label.path, label.leaf)
                found[Port(label.path, calls[key], label.what, label.leaf)] = eqn.outvars[0]
                calls[key] += 1
        return cls(equations, found)

    def towards(self, port: Port) -> list[Source]:
        """List the expressions that compute a module's input or output from other modules', in order of execution."""
        end = self._of_port.get(port)
        if end is None:
            return []
        ends = {variable for variable in self._of_port.values() if variable is not end}
        needed = set(self._before(end, ends))
        named = (eqn for eqn in self._equations if id(eqn) in needed and eqn.primitive.name != NAME)
        places = map(expression, named)
        return list(dict.fromkeys(place for place in places if place))

    def _before(self, end: Any, ends: set[Any]) -> Iterator[int]:
        """Yield the operations that a value comes from, back to what is a module's input or output itself."""
        open_, seen = [end], set()
        while open_:
            eqn = self._makers.get(open_.pop())
            if eqn is None or id(eqn) in seen:
                continue
            seen.add(id(eqn))
            yield id(eqn)
            open_ += [atom for atom in eqn.invars if not is_literal(atom) and atom not in ends]


def _all(program: Any) -> Iterator[Any]:
    for eqn in Program.of(program).equations:
        for nested in programs(eqn):
            yield from _all(nested)
        yield eqn
