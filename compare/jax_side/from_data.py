"""What a JAX side computes from its inputs and from numbers alone: tables, masks, positions, shifted labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lift import Lifter, traced
from compare.jax_side.lines import line
from compare.jax_side.primitives import BITS, KINDS, Kind, called, is_key, programs
from compare.jax_side.reading import equations, numbers
from compare.jax_side.run import JaxRun
from compare.jax_side.widths import without_x64
from compare.step.batch import Batch

LARGEST = 1_000_000
"""Elements of a value, at most."""


class Value(NamedTuple):
    """An array that no parameter goes into."""

    array: np.ndarray
    line: str
    """The user's line that computes it, "model.py:12"."""


class FromData(NamedTuple):
    """What is read from the program of the forward pass and the loss."""

    values: Sequence[Value] = ()
    """What it computes without any parameter, in float64, in order of execution."""
    operations: frozenset[str] | None = None
    """The names of the operations that give more than one number; None where the program was not read."""
    of_numbers: frozenset[str] = frozenset()
    """The names of those that give a single number."""
    numbers: frozenset[float] | None = None
    """The single numbers that are written into it; None where it was not read."""

    def operations_of(self, shape: tuple[int, ...]) -> frozenset[str] | None:
        """Name the operations that may give an array of this shape."""
        if self.operations is None or max(shape, default=1) > 1:
            return self.operations
        return self.operations | self.of_numbers

    def has_one_of(self, *values: float) -> bool:
        """Tell whether one of these numbers, or its inverse or square, is written into it; True if it was not read."""
        if self.numbers is None:
            return True
        wanted = np.array([each for value in values for each in (value, 1 / value, value**2, value**-2)])
        written = np.array(sorted(self.numbers))
        return bool(np.isclose(wanted[:, None], written, rtol=1e-12, atol=0).any())


def written_in(program: Any) -> FromData:
    """Read what is written into a traced program, but for the values that it computes."""
    found: tuple[set[str], set[str]] = set(), set()
    for eqn in equations(program):
        found[bool(np.prod(_shape(eqn), dtype=int) > 1)].add(_named(eqn))
    of_numbers, operations = map(frozenset, found)
    return FromData((), operations, of_numbers, numbers(program))


class _Unknown:
    """Stands for what comes from parameters or random numbers."""


_UNKNOWN = _Unknown()


def computed_from_data(run: JaxRun, batch: Batch) -> FromData:
    """Read the program of the forward pass and the loss.

    Args:
        run: In float64.
        batch: The step's.

    """
    import jax

    lines: list[str] = []

    def alone(params: Any, inputs: Any) -> Any:
        kept = run.state
        if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            kept = jax.tree.map(without_x64, kept)
        return run.structure.with_loss(kept._replace(params=params), inputs)

    with run.precision():
        inputs, params = run.inputs(batch), run.state.params
        # In float64 only where the whole step can be traced so, as `lift` says.
        program = traced(alone, (params, inputs), [], lift=run.dtype == "float64")[0]
        unknown = [_UNKNOWN] * len(jax.tree.leaves(params))

        def values(inputs: Any) -> list[Any]:
            reader = _Reader()
            reader.run(program, [*unknown, *jax.tree.leaves(inputs)])
            lines[:] = [each for each, _ in reader.found]
            return [value for _, value in reader.found]

        arrays = compiled_quickly(values)(inputs)  # compiled at once: single operations would be compiled one by one
    found = [Value(np.asarray(array), place) for array, place in zip(arrays, lines, strict=True)]
    return written_in(program)._replace(values=found)


def _named(eqn: Any) -> str:
    """Name an operation; x ** 0.5 is a square root."""
    exponent = getattr(eqn.invars[1], "val", None) if eqn.primitive.name == "pow" else None
    return next((root for power, root in _ROOTS if exponent == power), str(eqn.primitive.name))


_ROOTS = ((0.5, "sqrt"), (-0.5, "rsqrt"))


def _shape(eqn: Any) -> tuple[int, ...]:
    return getattr(eqn.outvars[0].aval, "shape", ()) if eqn.outvars else ()


class _Reader(Lifter):
    """Runs what no parameter goes into, and notes what it gives."""

    def __init__(self) -> None:
        super().__init__([])
        self.found: list[tuple[str, Any]] = []

    def constant(self, value: Any) -> Any:
        """Lift a number or an array that the program contains; an array of it is noted too."""
        given = super().constant(value)
        self._note_value("", given)
        return given

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation whose operands are known, and go into calls of which some are."""
        if eqn.primitive.name in BITS:
            return [_UNKNOWN] * len(eqn.outvars)
        if KINDS.get(eqn.primitive.name) is Kind.CALL:
            return Interpreter.run(self, called(eqn), args)
        draws = any(inner.primitive.name in BITS for program in programs(eqn) for inner in equations(program))
        if draws or any(arg is _UNKNOWN for arg in args):
            return [_UNKNOWN] * len(eqn.outvars)
        outputs = super().equation(eqn, args, given)
        place = line(eqn)
        for output in outputs:
            self._note_value(place, output)
        return outputs

    def enclosed(self, program: Any, args: Sequence[Any], given: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
        """Run a program within a loop or a branch; what is computed there cannot leave it, and is not noted."""
        kept, self.found = self.found, []
        try:
            return super().enclosed(program, args, given)
        finally:
            self.found = kept

    def _note_value(self, place: str, value: Any) -> None:

        shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
        if dtype is None or is_key(dtype):
            return
        if 1 < np.prod(shape, dtype=int) <= LARGEST:
            self.found.append((place, value))
