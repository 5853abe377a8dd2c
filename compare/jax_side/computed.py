"""Finds the user's expressions that compute a value between two modules of a traced JAX model."""

from collections.abc import Iterator, Mapping
from typing import Any

from compare.jax_side.lines import expression
from compare.jax_side.primitives import Program, is_literal
from compare.step.observation import Port
from compare.step.places import Source


class Computed:
    """A traced forward pass, of which each operation knows the line that it comes from.

    Args:
        program: The traced program.
        ports: The number, among its outputs, of each module's inputs and outputs.

    """

    def __init__(self, program: Any, ports: Mapping[Port, int]) -> None:
        _, _, _, self._equations, outputs = Program.of(program)
        self._of_port = {port: outputs[number] for port, number in ports.items() if not is_literal(outputs[number])}
        self._makers = {variable: eqn for eqn in self._equations for variable in eqn.outvars}

    def towards(self, port: Port) -> list[Source]:
        """List the expressions that compute a module's input or output from other modules', in order of execution."""
        end = self._of_port.get(port)
        if end is None:
            return []
        ends = {variable for variable in self._of_port.values() if variable is not end}
        needed = set(self._before(end, ends))
        places = (expression(eqn) for eqn in self._equations if id(eqn) in needed)
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
