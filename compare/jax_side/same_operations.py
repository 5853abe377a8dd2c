"""Compares the operations of two traces of the JAX side: in float32 and float64, for few examples and for many.

What is compared in float64, or with a few examples, says nothing of a program that branches on its dtype or on its
batch's size: `if x.shape[0] > 64` leaves nothing in the program that is traced.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.lines import is_of_jax, line
from compare.jax_side.primitives import Kind, Program, is_literal, is_program, kind, programs
from compare.jax_side.reading import lowest_precision

_NO_OPERATIONS = frozenset({"convert_element_type", "copy", "name", "stop_gradient", "broadcast_in_dim", "reshape"})
"""Operations that another dtype brings along, or takes away, without any effect on the numbers."""

_LIMITS = ("eps", "epsneg", "max", "min", "tiny", "smallest_subnormal")
"""Numbers that a type has: a program may use those of its own."""


class Operation(NamedTuple):
    """One operation on floating-point numbers, and the numbers that are written into it."""

    name: str
    numbers: tuple[float, ...]
    """Empty where JAX wrote them itself: its functions may have other numbers for each dtype."""
    place: str
    """The user's line, if it is known."""

    def __str__(self) -> str:
        return f"{self.name} at {self.place}" if self.place else self.name


def first_other(one: Any, other: Any, *, numbers: bool = True) -> Operation | None:
    """Return the first operation of a traced program that another has not at this place; None if all are the same.

    Args:
        one: The program whose operation is given.
        other: The program that it is compared with.
        numbers: Whether the numbers that are written into them must be equal as well.

    """
    # A number that is written into a program is rounded to what the program computes in: 0.05 is 0.0500488 in bfloat16.
    near = max(1e-6, *(lowest_precision(program)[1] for program in (one, other)))
    last = Operation("the end", (), "")
    # In order of execution, since two programs of one function are traced in the same order. A port that is the same
    # except for its dtype has no reason to compute in another one.
    for ours, theirs in itertools.zip_longest(_operations(one), _operations(other), fillvalue=last):
        if ours.name != theirs.name or (numbers and not _equal(ours.numbers, theirs.numbers, near)):
            return ours if ours is not last else theirs
    return None


def other_operations(narrow: Any, wide: Any) -> str:
    """Say where a float32 program has other operations than the float64 program; nothing where it has not."""
    other = first_other(narrow, wide)
    return f"but for what float32 rounding hides: there the port has other operations, first {other}" if other else ""


def _equal(ours: tuple[float, ...], theirs: tuple[float, ...], near: float) -> bool:
    return len(ours) == len(theirs) and all(
        np.isclose(one, other, rtol=near, atol=0, equal_nan=True) or (_limit(one) and _limit(other))
        for one, other in zip(ours, theirs, strict=True)
    )


def _limit(number: float) -> bool:
    known = [float(getattr(np.finfo(dtype), name)) for dtype in (np.float32, np.float64) for name in _LIMITS]
    return any(np.isclose(abs(number), abs(each), rtol=1e-6, atol=0) for each in known)


def _operations(program: Any) -> Iterator[Operation]:
    """List a program's operations on floating-point numbers, as far as their results are used."""
    # Casts differ between precisions, and some leave what nobody reads: only what is used is the program.
    for eqn in Program.of(program).used():
        if kind(eqn) in (None, Kind.ELEMENTS):
            if eqn.primitive.name not in _NO_OPERATIONS and any(map(_is_float, eqn.outvars)):
                numbers = tuple(_numbers(eqn))
                # The derivative of erfc in JAX 0.12 clips its input at 11 in float32, and at 28 in float64.
                yield Operation(eqn.primitive.name, () if numbers and is_of_jax(eqn) else numbers, line(eqn))
            continue
        for inner in programs(eqn):
            yield from _operations(inner)


def _is_float(atom: Any) -> bool:
    import jax.numpy as jnp

    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _numbers(eqn: Any) -> Iterator[float]:
    import jax.numpy as jnp

    for atom in eqn.invars:
        # NumPy itself has no bfloat16, and says so of its kind; JAX knows that it is a number.
        if is_literal(atom) and np.ndim(atom.val) == 0:
            dtype = np.asarray(atom.val).dtype
            if jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating):
                yield float(atom.val)
    for value in eqn.params.values():
        if isinstance(value, float) and not is_program(value):
            yield value
