"""Runs the JAX side with every operation in at least float32, even if the user's code sets a lower precision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import bind


def in_full_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of pytrees of arrays with its products, and what it rounds to a format, in full float32."""
    import jax

    @functools.wraps(function)
    def full(*args: Any) -> Any:
        program, shape = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*args)
        outputs = _FullFloat32().run(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return full


class _FullFloat32(Interpreter):
    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        import jax

        if eqn.primitive.name == "reduce_precision":
            return args
        # Of a product of matrices or a convolution: a `Precision`, a pair of them, or the name of an algorithm.
        if eqn.params.get("precision") is not None:
            return bind(eqn, args, precision=jax.lax.Precision.HIGHEST)
        return super().operation(eqn, args, given)
