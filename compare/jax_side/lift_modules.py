"""Makes Flax modules compute in float64, whatever dtype they were built with."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from compare.numerics.constants import LOW
from compare.step.user_code import passes_on


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

    @passes_on
    def widen(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        for name, value in list(vars(context.module).items()):
            if (wide := _wide_attribute(name, value)) is not None:
                object.__setattr__(context.module, name, wide)  # a Linen module is frozen
                changed.append((context.module, name, value))
        return function(*args, **kwargs)

    try:
        # Linen clones and binds modules at every apply, so that there is no object to be changed beforehand
        # as in nnx.
        with linen.intercept_methods(widen):
            yield
    finally:
        for module, name, value in changed:
            object.__setattr__(module, name, value)


def _wide_attribute(name: str, value: Any) -> Any:
    """Return the dtype to put in the place of an attribute's value, or None if that is not a low-precision dtype."""
    import jax.numpy as jnp

    if isinstance(value, np.dtype):
        low = value.name
    elif isinstance(value, type):  # jnp.float32, np.float32
        low = value.__name__
    else:
        low = value if isinstance(value, str) and "dtype" in name else ""
    return jnp.dtype(LOW[low].wide) if low in LOW else None
