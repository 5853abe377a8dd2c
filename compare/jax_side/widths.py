"""The widths of numbers: what they are without `jax.enable_x64`, in which a port runs."""

from typing import Any

import numpy as np

from compare.jax_side.primitives import is_key, is_tracer

NARROW = {"int64": "int32", "uint64": "uint32"}
"""Integers that a program has under `jax.enable_x64` alone, and those that it has without."""

_WITHOUT_X64 = {**NARROW, "float64": "float32", "complex128": "complex64"}
"""What each dtype is without `jax.enable_x64`."""


def bits(value: Any) -> bool:
    """Return whether it is an integer of 64 bits."""
    return str(getattr(value, "dtype", None)) in NARROW


def narrow(value: Any) -> Any:
    """Give an integer the width that it has without `jax.enable_x64`.

    A constant of the program that is larger is a bound of the type, such as `jnp.iinfo(x.dtype).max`.
    """
    if not bits(value):
        return value
    dtype = NARROW[str(value.dtype)]
    if not is_tracer(value):
        value = np.clip(np.asarray(value), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return cast(value, dtype)


def without_x64(value: Any) -> Any:
    """Give an array the dtype that it has without `jax.enable_x64`; a bound of the wider type is that of the other."""
    dtype = str(getattr(value, "dtype", ""))
    if dtype == "float64" and not is_tracer(value):
        array, most = np.asarray(value), np.finfo(np.float32).max
        value = np.where(np.isfinite(array), np.clip(array, -most, most), array)
    return cast(narrow(value), _WITHOUT_X64[dtype]) if dtype in _WITHOUT_X64 else value


def parameter_without_x64(parameter: Any) -> Any:
    """Give a dtype among an operation's parameters as it is without `jax.enable_x64`."""
    if isinstance(parameter, np.dtype | type) and is_dtype(parameter):
        name = str(np.dtype(parameter))
        return np.dtype(_WITHOUT_X64[name]) if name in _WITHOUT_X64 else parameter
    return parameter


def of_batch(value: Any, dtype: str) -> Any:
    """Give an array of a batch as a program has it: floating-point numbers in `dtype`, integers as without x64."""
    import jax
    import jax.numpy as jnp

    if isinstance(value, np.ndarray | np.generic | jax.Array) and bits(value):  # as JAX converts it, without a bound
        return jnp.asarray(np.asarray(value).astype(NARROW[str(value.dtype)]))
    if not isinstance(value, np.ndarray | np.generic):
        return value
    return jnp.asarray(value, dtype if value.dtype.kind == "f" else None)


def cast(value: Any, dtype: Any) -> Any:
    """Give an array another dtype; a random key stays what it is."""
    import jax

    if is_key(dtype):
        return value
    return jax.lax.convert_element_type(value, dtype)


def is_dtype(value: Any) -> bool:
    """Tell whether a parameter is a dtype, or a class of scalars that stands for one."""
    return isinstance(value, np.dtype) or issubclass(value, np.generic)
