"""Float64 that is float64 on the JAX side, whatever precision the user's code asks for.

`jax.enable_x64` and float64 arguments are not enough: modules built with `dtype=jnp.float32`, `.astype(jnp.bfloat16)`
and literals that are already rounded stay behind. So a step is traced, under float64 as far as it lets itself be, and
the program that comes out of the trace is run again with every lower precision replaced by float64.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compare.errors import InputError
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lift_modules import lifted_linen
from compare.jax_side.primitives import Program, bind, is_program, is_tracer
from compare.numerics.constants import LOW, restored


def lift(step: Callable[..., Any], pinned: list[str]) -> Callable[..., Any]:
    """Make `step` compute in float64 throughout. Compile it: `jax.jit(lift(step, pinned))`, under `jax.enable_x64()`.

    A whole training step is lifted at once, `jax.value_and_grad` inside it: what a function is differentiated to (0
    for `jax.nn.relu` at 0) was decided when it was traced. Integers, booleans, keys and random bits stay as they are,
    but random floats that JAX draws under float64 are others than those in float32: `replay.replaying` is for them.

    Linen modules are traced in float64 from within; for nnx, whose modules are made before, see
    `lift_modules.lift_nnx`.

    Args:
        step: A function of pytrees of arrays, floating-point ones in float64, that gives such a pytree.
        pinned: What could not be lifted is added here when the step is traced, for a person to read.

    """
    import jax

    @functools.wraps(step)
    def lifted(*args: Any) -> Any:
        closed, shape = traced(step, args, pinned, lift=True)
        values = jax.tree.leaves(args)
        variables = Program.of(closed).arguments
        # A program traced without float64 takes 32-bit integers.
        values = [
            jax.lax.convert_element_type(value, variable.aval.dtype) if _integer(variable.aval) else value
            for value, variable in zip(values, variables, strict=True)
        ]
        outputs = Lifter(pinned).run(closed, values)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return lifted


class Lifter(Interpreter):
    """Runs a traced program in float64. What it cannot lift it adds to `pinned`, once."""

    def __init__(self, pinned: list[str]) -> None:
        super().__init__()
        self.pinned = pinned

    def constant(self, value: Any) -> Any:
        """Lift a number or an array that the program contains."""
        import jax.numpy as jnp

        dtype = getattr(value, "dtype", None)
        if dtype is None or is_tracer(value) or str(dtype) not in (*LOW, "float64"):
            return value
        if str(dtype) == "complex64":
            return jnp.asarray(value, jnp.complex128)
        array = np.asarray(value).astype(np.float64)
        rounding = str(dtype) if str(dtype) in LOW else "float32"
        # JAX writes `np.float32(0.1) * x` into a float64 program as the float64 number that np.float32(0.1) is. A
        # float64 number is one of float32 by accident once in 2**29 times.
        with np.errstate(over="ignore"):
            if str(dtype) == "float64" and not np.array_equal(array.astype(np.float32), array, equal_nan=True):
                return value
        meant = restored(array, rounding)
        if meant is None:
            what = f"of shape {array.shape}" if array.ndim else f"{array:.9g}"
            self._note(f"a constant {what} in the JAX side's program, rounded to {rounding}")
        return array if meant is None else meant

    def carried(self, value: Any, variable: Any) -> Any:
        """Cast to the type that the variable has in float64.

        A float32 program has float32 in both branches of a conditional. Lifted, one of them may give a float64 array
        and the other a Python number or a NumPy array, which JAX takes for another type.
        """
        return _cast(value, _wide(variable.aval.dtype))

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation in float64; if it knows none, in its own precision."""
        del given
        name = eqn.primitive.name
        if name == "reduce_precision":
            return args
        if name == "bitcast_convert_type":  # the bits are those of the precision that the code meant
            return _as_written(eqn, args)
        try:
            outputs = bind(eqn, args, **{name: self._parameter(value) for name, value in eqn.params.items()})
        except (TypeError, NotImplementedError):  # it knows no float64
            outputs = None
        if outputs is None or any(_low(output.dtype) for output in outputs):
            self._note(f"{name}, which computes in the precision that it was written for")
            outputs = _as_written(eqn, args)
        return outputs

    def _parameter(self, value: Any) -> Any:
        """Lift an operation's parameter: a dtype, or a program that it applies to single elements of its arguments."""
        import jax

        if isinstance(value, np.dtype | type):
            return np.dtype(_wide(np.dtype(value))) if _is_dtype(value) and _low(np.dtype(value)) else value
        if isinstance(value, jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
            return None
        if is_program(value):
            avals: list[Any] = [variable.aval for variable in Program.of(value).arguments]
            shapes = [jax.ShapeDtypeStruct(aval.shape, _wide(aval.dtype)) for aval in avals]
            lifted = jax.make_jaxpr(lambda *args: self.enclosed(value, args)[0])(*shapes)
            return lifted if isinstance(value, type(lifted)) else lifted.jaxpr
        if isinstance(value, tuple):
            items = [self._parameter(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    def _note(self, text: str) -> None:
        note(self.pinned, text)


def note(pinned: list[str], text: str) -> None:
    """Add what could not be lifted, once."""
    if text not in pinned:
        pinned.append(text)


def _low(dtype: Any) -> bool:
    return str(dtype) in LOW


def _wide(dtype: Any) -> Any:
    return LOW[str(dtype)].wide if _low(dtype) else dtype


def _cast(value: Any, dtype: Any) -> Any:
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(dtype, jax.dtypes.extended):  # a random key
        return value
    return jax.lax.convert_element_type(value, dtype)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, np.dtype) or issubclass(value, np.generic)


def _as_written(eqn: Any, args: list[Any]) -> list[Any]:
    """Evaluate one operation in its own precision, between casts."""
    narrow = [
        _cast(arg, variable.aval.dtype) if _low(variable.aval.dtype) else arg
        for arg, variable in zip(args, eqn.invars, strict=True)
    ]
    return [_cast(output, _wide(output.dtype)) for output in bind(eqn, narrow)]


def traced(step: Callable[..., Any], args: Any, pinned: list[str], *, lift: bool) -> tuple[Any, Any]:
    """Trace a step; to lift it, in float64, or in float32 where the code mixes precisions in a way that JAX refuses.

    Returns:
        The program, and the shapes of what the step gives.

    """
    import jax

    def fresh(*args: Any) -> Any:
        """JAX remembers traces by function: this one is to be found by nobody else, and not to be another's."""
        return step(*args)

    if not lift:
        return jax.make_jaxpr(fresh, return_shape=True)(*args)
    try:
        with lifted_linen():
            return jax.make_jaxpr(fresh, return_shape=True)(*args)
    except (TypeError, InputError) as error:
        refused: Exception = error

    def narrow(value: Any) -> Any:
        low = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "complex128": np.complex64}
        return jax.ShapeDtypeStruct(value.shape, low.get(str(value.dtype), value.dtype))

    with jax.enable_x64(False), warnings.catch_warnings():
        # nnx modules ask for the float64 that `lift_nnx` gave them.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
        found = jax.make_jaxpr(fresh, return_shape=True)(*jax.tree.map(narrow, args))
    reason = str(refused.__cause__ or refused).strip().partition("\n")[0]
    note(pinned, f"the JAX side was traced in float32, which rounds its constants, for in float64 JAX says: {reason}")
    return found


def _integer(aval: Any) -> bool:
    return getattr(aval.dtype, "kind", "") in "iu"
