"""Cell 2 of the notebook in JAX: the backward pass by hand, jit-compiled.

The weights are kept as `(out, in)`, as `torch.nn.Linear` keeps them. XLA's matrix products on CPU are then a
fifth faster: a whole step takes as long as its two large products alone (docs/speed.md).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnet.trajectory import Problem, State, Step, Trajectory, arrays, positive, precision


def start(problem: Problem, *, dtype: DTypeLike = jnp.float32) -> tuple[State, jax.Array, jax.Array]:
    """Return the arguments of `step`: the weights `w1` `(H, D_in)` and `w2` `(D_out, H)`, and `x` and `y`."""
    weights = {"w1": jnp.asarray(problem.w1.T, dtype), "w2": jnp.asarray(problem.w2.T, dtype)}
    return State(weights), *arrays(problem, dtype)


@jax.jit
def step(state: State, x: jax.Array, y: jax.Array, learning_rate: float = 1e-6) -> Step:
    """One step of gradient descent."""
    w1, w2 = state.weights["w1"], state.weights["w2"]

    # Forward pass: compute predicted y
    h = x @ w1.T
    h_relu = jnp.maximum(h, 0)
    y_pred = h_relu @ w2.T

    # Compute loss
    loss = jnp.square(y_pred - y).sum()

    # Backprop to compute gradients of w1 and w2 with respect to loss
    grad_y_pred = 2.0 * (y_pred - y)
    grad_w2 = grad_y_pred.T @ h_relu
    grad_h_relu = grad_y_pred @ w2
    grad_h = jnp.where(h < 0, 0, grad_h_relu)
    grad_w1 = grad_h.T @ x

    # Update weights using gradient descent
    gradients = {"w1": grad_w1, "w2": grad_w2}
    weights = {"w1": w1 - learning_rate * grad_w1, "w2": w2 - learning_rate * grad_w2}
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
