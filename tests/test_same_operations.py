"""Whether the float32 program has the operations and numbers of the float64 program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compare.jax_side.same_operations import first_other


@jax.custom_jvp
def bounded(x: Any) -> Any:
    return jnp.exp(x)


@bounded.defjvp
def _by_dtype(primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    return bounded(x), tangent * jnp.minimum(jnp.exp(x), 11.0 if x.dtype == jnp.float32 else 28.0)


def traced(function: Any, dtype: Any) -> Any:
    with jax.enable_x64(True):
        return jax.make_jaxpr(jax.grad(lambda x: function(x).sum()))(jnp.ones(3, dtype))


@pytest.mark.parametrize("function", [jax.scipy.special.erfc, jax.scipy.special.erf, jax.nn.gelu, jax.lax.lgamma])
def test_functions_of_jax_may_have_numbers_of_their_own(function: Any) -> None:
    """Such as the derivative of erfc, which JAX 0.12 clips elsewhere in each dtype."""
    assert first_other(traced(function, np.float32), traced(function, np.float64)) is None


def test_a_derivative_of_the_user_may_not() -> None:
    other = first_other(traced(bounded, np.float32), traced(bounded, np.float64))
    assert other is not None
    assert other.name == "min"
