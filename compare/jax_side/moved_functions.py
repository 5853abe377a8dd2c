"""Runs a traced program with what its functions and sums give moved by rounding, to see what follows.

Two libraries' tanh are as far apart. Where tanh is -1 but for its last digit, 1 + tanh is nothing but that digit: so it
is in the derivatives of GELU, ELU and sigmoid, whose inputs are far from zero. Moving the weights does not show it,
because tanh stays the same there. Nor does it show all that is lost in the difference of two sums, as in the fast
variance of Flax's norms, E[x²] - E[x]²: if x moves, both sums move together.
"""

from collections.abc import Sequence
from typing import Any

from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import FUNCTIONS, SUMS, is_tracer
from compare.jax_side.twins import Twins
from compare.numerics.distance import ULPS


class FunctionsMoved(Interpreter):
    """Moves what each function and each sum gives.

    Args:
        draw: Which movement is made. An odd one moves each element up or down. An even one gives 1 or -1 where a
            function gives that but for its last digits, as another library does: a gradient that is zero there, and
            whose rounding Adam makes a whole step of, is moved to zero by no other movement. Sums move up or down in
            both, by the rounding of their terms.
        kept: The positions of those arguments of a step that are constants where it gives them back as they are.

    """

    def __init__(self, draw: int, kept: range = range(0)) -> None:
        super().__init__()
        self._draw, self._kept = draw, kept
        self.twins = Twins()

    def step(self, program: Any, args: Sequence[Any], written: Sequence[Any] = ()) -> list[Any]:
        """Run the program of a step, whose arguments are as they are written."""
        import jax.numpy as jnp

        del written

        kept = (number in self._kept and jnp.issubdtype(arg.dtype, jnp.floating) for number, arg in enumerate(args))
        self.twins.add_unchanged(program, args, [arg if each else None for arg, each in zip(args, kept, strict=True)])
        return self.run(program, args)

    def constant(self, value: Any) -> Any:
        """Return a number or an array that the program contains."""
        if not is_tracer(value):  # a function that is differentiated may hold a value that depends on weights
            self.twins.add(value, value)
        return value

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation."""
        outputs = self._moving(eqn, args, given)
        return self.twins.after(eqn, args, outputs, lambda twins: Interpreter.operation(self, eqn, twins, given))

    def _moving(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        import jax.numpy as jnp

        outputs = super().operation(eqn, args, given)
        if eqn.primitive.name in SUMS:
            self._draw += 2
            (sizes,) = super().operation(eqn, [jnp.abs(args[0])], given)
            return [_sum_moved(outputs[0], sizes, args[0], self._draw)]
        if eqn.primitive.name not in FUNCTIONS:
            return outputs
        if self._draw % 2 == 0:
            return [_saturated(output) for output in outputs]
        self._draw += 2
        return [_moved(output, self._draw) for output in outputs]


def _saturated(value: Any) -> Any:
    import jax.numpy as jnp

    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    near = jnp.abs(jnp.abs(value) - 1) <= 2 * ULPS * float(jnp.finfo(value.dtype).eps)
    return jnp.where(near, jnp.sign(value), value)


def _moved(value: Any, draw: int) -> Any:
    import jax.numpy as jnp

    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return value * (1 + _ulps(value, draw))


def _sum_moved(total: Any, sizes: Any, terms: Any, draw: int) -> Any:
    """Move a sum as its terms are rounded, whatever is left of them; a sum of whole numbers is exact."""
    import jax.numpy as jnp

    if not jnp.issubdtype(total.dtype, jnp.floating):
        return total
    return jnp.where((terms == jnp.round(terms)).all(), total, total + sizes * _ulps(total, draw))


def _ulps(value: Any, draw: int) -> Any:
    """Draw a few units in the last place for each element, up or down."""
    import jax.numpy as jnp

    # Knuth's multiplicative hash of an element's position: https://en.wikipedia.org/wiki/Hash_function#Fibonacci_hashing.
    # It needs no array of signs in the program.
    position = jnp.arange(value.size, dtype=jnp.uint32) + jnp.uint32(draw * 40503)
    up = ((position * jnp.uint32(2654435761)) >> 16) & 1
    ulps = ULPS * float(jnp.finfo(value.dtype).eps)
    return jnp.where(up == 1, ulps, -ulps).astype(value.dtype).reshape(value.shape)
