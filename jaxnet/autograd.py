"""Cell 3 of the notebook in JAX: `jax.value_and_grad` for the backward pass, the update by hand.

The weights are kept as `(out, in)`, as in `jaxnet.manual`, and start from there too.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnet.manual import start
from jaxnet.trajectory import Problem, State, Step, Trajectory, positive, precision

__all__ = ["loss_fn", "scan", "start", "step", "train"]


def loss_fn(weights: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum of squared errors of the network, a scalar."""
    # Forward pass: compute predicted y using operations on arrays.
    # The gradient of clamp(min=0) passes at exactly 0 in PyTorch up to 2.13; jax.nn.relu's does not, jnp.maximum's half
    # does.
    h = x @ weights["w1"].T
    y_pred = jnp.where(h < 0, 0, h) @ weights["w2"].T

    # Compute and return loss
    return jnp.square(y_pred - y).sum()


@jax.jit
def step(state: State, x: jax.Array, y: jax.Array, learning_rate: float = 1e-6) -> Step:
    """One step of gradient descent."""
    # Use automatic differentiation to compute the backward pass
    loss, gradients = jax.value_and_grad(loss_fn)(state.weights, x, y)

    # Update weights using gradient descent
    weights = jax.tree.map(lambda weight, gradient: weight - learning_rate * gradient, state.weights, gradients)
    return Step(loss, gradients, State(weights))


@partial(jax.jit, static_argnames="steps")
def scan(state: State, x: jax.Array, y: jax.Array, steps: int, learning_rate: float = 1e-6) -> tuple[State, jax.Array]:
    """Run a whole trajectory as one compiled program: the final state, and the losses of shape `(steps,)`."""

    def body(state: State, _: None) -> tuple[State, jax.Array]:
        loss, _gradients, state = step(state, x, y, learning_rate)
        return state, loss

    return jax.lax.scan(body, state, length=steps)


def train(
    problem: Problem, steps: int = 100, *, learning_rate: float = 1e-6, dtype: DTypeLike = jnp.float32
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    with precision(dtype):
        state, losses = scan(*start(problem, dtype=dtype), positive(steps), learning_rate)
        return Trajectory(losses, {name: weight.T for name, weight in state.weights.items()})
