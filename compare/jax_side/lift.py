"""Float64 that is float64 on the JAX side, whatever precision the user's code asks for.

`jax.enable_x64` and float64 arguments are not enough: modules built with `dtype=jnp.float32`, `.astype(jnp.bfloat16)`
and literals that are already rounded stay behind. So a step is traced, under float64 as far as it lets itself be, and
the program that comes out of the trace is run again with every lower precision replaced by float64.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compare.errors import InputError
from compare.jax_side.jaxpr import WIDE, Lifter, note


def lift(step: Callable[..., Any], pinned: list[str]) -> Callable[..., Any]:
    """Make `step` compute in float64 throughout. Compile it: `jax.jit(lift(step, pinned))`, under `jax.enable_x64()`.

    A whole training step is lifted at once, `jax.value_and_grad` inside it: what a function is differentiated to (0
    for `jax.nn.relu` at 0) was decided when it was traced. Integers, booleans, keys and random bits stay as they are,
    but random floats that JAX draws under float64 are others than those in float32: `compare.replay_jax` is for them.

    Linen modules are traced in float64 from within; for nnx, whose modules are made before, see `lift_nnx`.

    Args:
        step: A function of pytrees of arrays, floating-point ones in float64, that gives such a pytree.
        pinned: What could not be lifted is added here when the step is traced, for a person to read.

    """
    import jax

    @functools.wraps(step)
    def lifted(*args: Any) -> Any:
        closed, shape = _traced(step, args, pinned)
        values = jax.tree.leaves(args)
        variables = closed.jaxpr.invars
        # A program traced without float64 takes 32-bit integers.
        values = [
            jax.lax.convert_element_type(value, variable.aval.dtype) if _integer(variable.aval) else value
            for value, variable in zip(values, variables, strict=True)
        ]
        outputs = Lifter(pinned).run(closed, values)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return lifted


def lift_nnx(model: Any) -> None:
    """Set each low-precision dtype that a module of `model` keeps as an attribute to float64, in place.

    Its variables are left as they are. The model's graph definition takes part in this: split it afterwards.

    Args:
        model: An `nnx.Module`, the caller's own copy.

    """
    from flax import nnx

    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if (wide := _wide_attribute(name, value)) is not None:
                setattr(module, name, wide)


@contextlib.contextmanager
def lifted_linen() -> Iterator[None]:
    """Set each low-precision dtype of every Linen module that runs meanwhile to float64, and back again at the end.

    It takes effect before the module's own `setup` does, which is intercepted as well, so that submodules are made
    with the new dtype, whether in `setup` or in a compact method.
    """
    from flax import linen

    changed: list[tuple[Any, str, Any]] = []

    def widen(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        for name, value in list(vars(context.module).items()):
            if (wide := _wide_attribute(name, value)) is not None:
                object.__setattr__(context.module, name, wide)  # a Linen module is frozen
                changed.append((context.module, name, value))
        return function(*args, **kwargs)

    try:
        with linen.intercept_methods(widen):
            yield
    finally:
        for module, name, value in changed:
            object.__setattr__(module, name, value)


def _wide_attribute(name: str, value: Any) -> Any:
    """Give the dtype to put in the place of an attribute's value, or None if that is not a low-precision dtype."""
    import jax.numpy as jnp

    if isinstance(value, np.dtype):
        low = value.name
    elif isinstance(value, type):  # jnp.float32, np.float32
        low = value.__name__
    else:
        low = value if isinstance(value, str) and "dtype" in name else ""
    return jnp.dtype(WIDE[low]) if low in WIDE else None


def _traced(step: Callable[..., Any], args: Any, pinned: list[str]) -> tuple[Any, Any]:
    """Trace in float64; if the code mixes in a lower precision in a way that JAX refuses, in float32."""
    import jax

    def fresh(*args: Any) -> Any:
        """JAX remembers traces by function: this one is to be found by nobody else, and not to be another's."""
        return step(*args)

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
