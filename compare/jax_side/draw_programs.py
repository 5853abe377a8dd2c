"""What the functions of `jax.random` do with their random numbers, read in their traced programs.

The arguments of a traced draw are not always those of the function. Where a step that contains its own gradient draws
within `jax.lax.scan`, JAX computes before the loop what is the same in every turn: the draw takes intermediate results
in the place of its arguments, in an order that is JAX's. And a draw whose arguments depend on the parameters gives what
its derivative needs, as further results. The operation that makes a draw of random bits is in the program either way:
a recorded draw takes the place of its result, and its operand is the draw's parameter.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from compare.jax_side.distributions import PARAMETERS
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import GAMMA, Program, called, is_key, is_literal, programs


class _Operation(NamedTuple):
    """The operation of a draw's program that a recorded draw stands in for."""

    name: str
    parameter: int | None
    """The number of the operand that is the parameter; None where it has none."""


_OPERATIONS: dict[str, _Operation] = {
    "uniform": _Operation("sub", None),  # random bits are made a number from 1 to 2, less 1
    "bernoulli": _Operation("lt", 1),  # a uniform number is less than the probability
    "randint": _Operation("rem", 1),  # the remainder of random bits, for the number of integers
    "gamma": _Operation(GAMMA, 1),
    "loggamma": _Operation(GAMMA, 1),
}
"""By kind. The other kinds have no parameters, or none that is differentiated: their result is replaced."""


def obstacle(kind: str, eqn: Any) -> str:
    """Tell why a recorded draw cannot stand in for an operation that draws; empty if it can."""
    known = _operation(kind, called(eqn)) is not None if kind in _OPERATIONS else len(eqn.outvars) == 1
    return "" if known else f"how this version of JAX makes its {kind} numbers is not known"


def standing_in(kind: str, draw: Any, eqn: Any, args: Sequence[Any]) -> list[Any]:
    """Do with a recorded draw what a draw of JAX's does with its own random numbers."""
    if kind == "permutation":
        return [args[1][draw]]
    # A uniform number of torch's may be given for a boolean.
    inner = "uniform" if kind == "bernoulli" and draw.dtype != bool else kind
    if inner in _OPERATIONS:
        return _Redrawn(inner, called(eqn), draw).run(called(eqn), args)
    return [draw.astype(eqn.outvars[0].aval.dtype)]


def parameters(kind: str, eqn: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """Give what `Draw.parameters` has, of the JAX side; empty where a draw has none, or they cannot be read."""
    import jax.numpy as jnp

    shape = tuple(eqn.outvars[0].aval.shape)
    if kind not in PARAMETERS:
        return ()
    if kind in _OPERATIONS:
        redrawn = _Redrawn(kind, called(eqn), None)
        redrawn.run(called(eqn), args)
        return (jnp.broadcast_to(redrawn.parameter, shape),)
    (at,) = keys_of(eqn)
    others = [*args[:at], *args[at + 1 :]]
    if len(others) != len(PARAMETERS[kind]):  # intermediate results
        return ()
    return tuple(_over(each, args[at].shape, shape) for each in others)


class Categories:
    """Follows Gumbel variables to where the largest of their sums with logits is a category.

    That is how `jax.random.categorical` and `jax.random.choice` draw: neither is an operation of a traced program.
    """

    def __init__(self) -> None:
        self._drawn: list[tuple[int, Any]] = []
        """Gumbel variables, each with its number."""
        self._sums: list[tuple[int, Any, Any]] = []
        """Their sums with what may be logits, and these."""

    def drawn(self, number: int, variables: Any) -> None:
        """Follow some Gumbel variables, which are given a number."""
        self._drawn.append((number, variables))

    def chosen(self, eqn: Any, args: Sequence[Any], outputs: Sequence[Any]) -> tuple[int, Any] | None:
        """Give the number of the variables by which an operation chooses, and the categories' probabilities.

        These have the shape of the variables, with the categories along the last axis. None for any other operation.
        """
        import jax
        import jax.numpy as jnp

        if eqn.primitive.name == "add":
            for (number, variables), (at, arg) in itertools.product(self._drawn, enumerate(args)):
                if arg is variables:
                    self._sums.append((number, outputs[0], args[1 - at]))
        elif eqn.primitive.name in ("argmax", "top_k"):
            for number, scores, logits in self._sums:
                axes = eqn.params.get("axes", (eqn.params.get("axis", scores.ndim - 1),))
                if args[0] is scores and tuple(axes) == (scores.ndim - 1,):
                    return number, jax.nn.softmax(jnp.broadcast_to(logits, scores.shape))
        return None


def keys_of(eqn: Any) -> list[int]:
    """Give the numbers of the arguments that are random keys."""
    return [number for number, atom in enumerate(eqn.invars) if is_key(atom.aval.dtype)]


class _Redrawn(Interpreter):
    """Runs the program of a draw, with a recorded draw if one is given, and reads the draw's parameter."""

    def __init__(self, kind: str, program: Any, draw: Any) -> None:
        super().__init__()
        self.parameter: Any = None
        self._kind, self._draw = kind, draw
        self._at = _operation(kind, program)

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation; the recorded draw is the result of one."""
        if eqn is not self._at:
            return super().operation(eqn, args, given)
        if (number := _OPERATIONS[self._kind].parameter) is not None:
            self.parameter = args[number]
        if self._draw is None:
            return super().operation(eqn, args, given)
        draw = self._draw.astype(eqn.outvars[0].aval.dtype)
        if eqn.primitive.name == GAMMA:
            draw = _following(draw, self.parameter, logarithm=self._kind == "loggamma")
        return [draw]


def _operation(kind: str, program: Any) -> Any:
    """Find the operation whose result a recorded draw replaces."""
    name = _OPERATIONS[kind].name
    found = [eqn for eqn in _within(program) if eqn.primitive.name == name]
    if kind == "uniform":  # the size of the range is a difference too, but of two variables
        found = [eqn for eqn in found if is_literal(eqn.invars[1])]
    return found[-1] if found else None


def _within(program: Any) -> Iterator[Any]:
    """List the operations of a program and of the programs that it calls, in order of execution."""
    for eqn in Program.of(program).equations:
        yield eqn
        for inner in programs(eqn):
            yield from _within(inner)


def _over(parameter: Any, keys: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Broadcast a parameter to the shape of what is drawn; under `vmap`, its first axes may be those of the keys."""
    import jax.numpy as jnp

    parameter = jnp.asarray(parameter)
    if keys and parameter.shape[: len(keys)] == keys:
        rest = parameter.shape[len(keys) :]
        parameter = parameter.reshape(*keys, *[1] * (len(shape) - parameter.ndim), *rest)
    return jnp.broadcast_to(parameter, shape)


def _following(draw: Any, concentration: Any, *, logarithm: bool) -> Any:
    """Give a Gamma variable, or its logarithm, that moves with its concentration as JAX's own does."""
    import jax
    import jax.numpy as jnp

    fixed = jax.lax.stop_gradient(concentration)
    value = jnp.maximum(draw, jnp.finfo(draw.dtype).tiny)
    slope = jax.lax.random_gamma_grad(fixed, value)
    if logarithm:
        value, slope = jnp.log(value), slope / value
    return value + slope * (concentration - fixed)
