"""What a traced JAX program contains: calls that leave it, and the numbers that it brings along."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.lines import line
from compare.jax_side.primitives import Program, is_foreign, is_literal, is_tracer, programs
from compare.numerics.constants import restored


class ForeignCall(NamedTuple):
    """One call out of the program."""

    name: str
    """The operation: "pure_callback"."""
    place: str
    """The user's line, "port.py:12", where it is known."""

    def __str__(self) -> str:
        return f"{self.name} at {self.place}" if self.place else self.name


def foreign_calls(program: Any) -> list[ForeignCall]:
    """List the calls of Python or of another library in a traced program and the programs in it, each once."""
    return list(
        dict.fromkeys(ForeignCall(eqn.primitive.name, line(eqn)) for eqn in equations(program) if is_foreign(eqn))
    )


def equations(program: Any) -> Iterator[Any]:
    """Yield all operations of a traced program, and of the programs within them."""
    for eqn in Program.of(program).equations:
        yield eqn
        for nested in programs(eqn):
            yield from equations(nested)


def arrays(program: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of floating-point numbers that a traced program and the programs within it contain."""
    for value in Program.of(program).constants:
        if not is_tracer(value) and getattr(getattr(value, "dtype", None), "kind", "") == "f":
            yield np.asarray(value)
    for eqn in Program.of(program).equations:
        for nested in programs(eqn):
            yield from arrays(nested)


def numbers(program: Any) -> frozenset[float]:
    """Give the single floating-point numbers that a traced program and the programs within it contain, as written."""
    operands = (operand.val for eqn in equations(program) for operand in eqn.invars if is_literal(operand))
    single = (np.asarray(each) for each in (*operands, *arrays(program)) if np.ndim(each) == 0)
    found = []
    for each in single:
        meant = restored(each) if each.dtype == np.float32 else None
        found += [float(each if meant is None else meant)] if each.dtype.kind == "f" else []
    return frozenset(found)


def lowest_precision(program: Any) -> tuple[str, float]:
    """Return the floating-point type with the fewest bits that a traced program computes in, and its machine epsilon.

    A product may be computed in fewer bits than its operands have, as in TF32.
    """
    import jax.numpy as jnp

    found = {"float32": float(jnp.finfo("float32").eps)}
    for eqn in equations(program):
        for variable in eqn.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                found.setdefault(str(dtype), float(jnp.finfo(dtype).eps))
        if eqn.primitive.name == "reduce_precision":
            bits = eqn.params["mantissa_bits"]
            found.setdefault(f"{bits} bits of mantissa", 2.0**-bits)
        named = _named(eqn.params.get("precision"))
        found |= {name: epsilon for name, epsilon in _ALGORITHMS.items() if name in named}
    return max(found.items(), key=lambda each: each[1])


def _named(precision: Any) -> str:
    """Name the algorithm of a product: on a GPU, `jax.lax.Precision` has TF32 for all but its highest."""
    import jax

    each = precision if isinstance(precision, tuple) else (precision,)
    on_gpu = getattr(jax.config.jax_default_device, "platform", "") == "gpu"  # type: ignore[attr-defined]
    if on_gpu and any(one in (jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGH) for one in each):
        return "TF32"
    return str(precision)


_ALGORITHMS = {"TF32": 2.0**-10, "BF16": 2.0**-7, "_F16": 2.0**-10}
"""Machine epsilons of the precisions in the names of `jax.lax.DotAlgorithmPreset`."""
