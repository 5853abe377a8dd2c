"""What a step computes, what a training run leaves behind, and what both start from."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Problem(Protocol):
    """What to fit, and the weights to start from: `compare.Problem`, `jaxnet.initial`, or anything similar.

    In the notebook's orientation, float32 or float64: `x` is `(N, D_in)`, `y` `(N, D_out)`, `w1` `(D_in, H)`,
    `b1` `(H,)`, `w2` `(H, D_out)` and `b2` `(D_out,)`. `manual` and `autograd` have no biases.
    """

    @property
    def x(self) -> Any: ...  # noqa: D102
    @property
    def y(self) -> Any: ...  # noqa: D102
    @property
    def w1(self) -> Any: ...  # noqa: D102
    @property
    def b1(self) -> Any: ...  # noqa: D102
    @property
    def w2(self) -> Any: ...  # noqa: D102
    @property
    def b2(self) -> Any: ...  # noqa: D102


class State(NamedTuple):
    """What a step starts from and what it leaves for the next: a pytree, so that `jax.lax.scan` carries it."""

    weights: Any
    """A dict of arrays by the notebook's names, or an `nnx.Sequential`."""
    optimizer: Any = ()
    """Optax's state."""


class Step(NamedTuple):
    """Everything that one step computes."""

    loss: jax.Array
    """Scalar, of the weights *before* the update."""
    gradients: Any
    """Of the same structure as the weights."""
    state: State
    """After the update."""


class Trajectory(NamedTuple):
    """A whole training run."""

    losses: jax.Array
    """Shape `(steps,)`: the loss of each step, taken before that step's update."""
    weights: dict[str, jax.Array]
    """The final weights, named and oriented as in the problem: `w1` is `(D_in, H)`."""


def arrays(problem: Problem, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """`x` and `y` as JAX arrays."""
    return jnp.asarray(problem.x, dtype), jnp.asarray(problem.y, dtype)


def positive(steps: int) -> int:
    """Return `steps`, or raise ValueError if it is not a positive whole number."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a positive whole number, not {steps!r}")
    return steps


def precision(dtype: DTypeLike) -> Any:
    """Enable float64 if it is asked for: without this context JAX silently computes in float32."""
    return jax.enable_x64(jnp.dtype(dtype).itemsize == 8)
