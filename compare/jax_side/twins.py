"""Whole numbers that a program makes of constants are those of the program as it is written.

See `torch_side.twins`, which does the same for torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compare.jax_side.primitives import BITS, ROUNDING, Kind, Program, called, is_literal, kind


class Twins:
    """Follows values that depend on constants alone, in the program as it is written beside the one that is run."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[Any, Any]] = {}
        """Each such value, with what it is in the program as it is written, by its identity."""

    def add(self, value: Any, twin: Any) -> None:
        """Add a constant, and what it is in the program as it is written."""
        self._twins[id(value)] = value, twin

    def add_unchanged(self, program: Any, arguments: Sequence[Any], written: Sequence[Any]) -> None:
        """Add those arguments of a step that it gives back as they are.

        Args:
            program: That of the step, traced.
            arguments: What it is given in this run.
            written: What the first of these are in the program as it is written; None for weights, and for what is no
                floating-point number.

        """
        unchanged = set(_arguments_given_back(program))
        for number, (value, twin) in enumerate(zip(arguments, written, strict=False)):
            if twin is not None and number in unchanged:
                self.add(value, twin)

    def after(
        self, eqn: Any, args: list[Any], outputs: list[Any], evaluate: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        """Give what an operation gives; whole numbers of constants alone as in the program as it is written.

        Args:
            eqn: The operation.
            args: Its arguments in this run.
            outputs: What it gives in this run.
            evaluate: Runs it as it is written.

        """
        import jax
        import jax.numpy as jnp

        # Random bits have the width that their run asks for.
        if eqn.primitive.name in BITS or any(id(arg) not in self._twins for arg in args):
            return outputs
        twins = [self._twins[id(arg)][1] for arg in args]
        try:
            written = evaluate(twins)
        except (TypeError, NotImplementedError):  # integers are narrower in this run than in the program
            return outputs
        whole = eqn.primitive.name in ROUNDING
        # A literal of the program, such as the False that `jnp.select` begins with, may be a number of Python's.
        real = any(
            jnp.issubdtype(np.asarray(twin).dtype if np.isscalar(twin) else twin.dtype, np.floating) for twin in twins
        )
        found = []
        for now, twin in zip(outputs, written, strict=True):
            inexact = jnp.issubdtype(now.dtype, jnp.inexact)
            value = jax.lax.convert_element_type(twin, now.dtype) if real and (whole or not inexact) else now
            self.add(value, twin if inexact else value)
            found.append(value)
        return found


def _arguments_given_back(program: Any) -> list[int | None]:
    """Give for each output of a program the position of the argument that it is; None where it is computed."""
    _, _, parameters, equations, outputs = Program.of(program)
    positions = {variable: number for number, variable in enumerate(parameters)}
    for eqn in equations:
        if kind(eqn) == Kind.CALL:  # such as a step that is jitted
            for variable, number in zip(eqn.outvars, _arguments_given_back(called(eqn)), strict=True):
                given = None if number is None else eqn.invars[number]
                if given is not None and not is_literal(given) and given in positions:
                    positions[variable] = positions[given]
    return [None if is_literal(output) else positions.get(output) for output in outputs]


def written(arrays: Any) -> list[Any]:
    """Give what each leaf of a pytree of arrays is in the program as it is written; None for no floating-point one."""
    import jax
    import jax.numpy as jnp

    def one(array: Any) -> Any:
        real = hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.floating)
        return np.asarray(array).astype(np.float32) if real else None

    return [one(array) for array in jax.tree.leaves(arrays)]
