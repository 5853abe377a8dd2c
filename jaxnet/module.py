"""Cell 4 of the notebook in JAX: a model from flax.nnx, the update by hand.

An `nnx.Module` is a pytree, so that `jax.value_and_grad`, `jax.tree.map` and `jax.lax.scan` take the model itself.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxnet.trajectory import Problem, State, Step, Trajectory, arrays, positive, precision


def network(problem: Problem, *, dtype: DTypeLike = jnp.float32) -> nnx.Sequential:
    """Build the notebook's model around the problem's weights: `nnx.Linear` keeps them as `(in, out)`."""

    def linear(weight: Any, bias: Any) -> nnx.Linear:
        return nnx.Linear(
            *weight.shape,
            kernel_init=lambda *_: jnp.asarray(weight, dtype),
            bias_init=lambda *_: jnp.asarray(bias, dtype),
            rngs=nnx.Rngs(0),
        )

    return nnx.Sequential(linear(problem.w1, problem.b1), nnx.relu, linear(problem.w2, problem.b2))


def final_weights(model: nnx.Sequential) -> dict[str, jax.Array]:
    """Return the model's weights with the problem's names and orientation."""
    first, second = cast("Any", model.layers[0]), cast("Any", model.layers[2])
    return {"w1": first.kernel[...], "b1": first.bias[...], "w2": second.kernel[...], "b2": second.bias[...]}


def start(problem: Problem, *, dtype: DTypeLike = jnp.float32) -> tuple[State, jax.Array, jax.Array]:
    """Return the arguments of `step`: the model, and `x` and `y`."""
    return State(network(problem, dtype=dtype)), *arrays(problem, dtype)


def loss_fn(model: nnx.Sequential, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum of squared errors of the model, a scalar: `MSELoss(reduction="sum")`."""
    # Forward pass: compute predicted y by passing x to the model
    y_pred = model(x)

    # Compute loss
    return jnp.square(y_pred - y).sum()


@jax.jit
def step(state: State, x: jax.Array, y: jax.Array, learning_rate: float = 1e-4) -> Step:
    """One step of gradient descent."""
    # Backward pass: compute gradient of the loss with respect to all the learnable parameters of the model
    loss, gradients = jax.value_and_grad(loss_fn)(state.weights, x, y)

    # Update the weights using gradient descent
    weights = jax.tree.map(lambda param, gradient: param - learning_rate * gradient, state.weights, gradients)
    return Step(loss, gradients, State(weights))


@partial(jax.jit, static_argnames="steps")
def scan(state: State, x: jax.Array, y: jax.Array, steps: int, learning_rate: float = 1e-4) -> tuple[State, jax.Array]:
    """Run a whole trajectory as one compiled program: the final state, and the losses of shape `(steps,)`."""

    def body(state: State, _: None) -> tuple[State, jax.Array]:
        loss, _gradients, state = step(state, x, y, learning_rate)
        return state, loss

    return jax.lax.scan(body, state, length=steps)


def train(
    problem: Problem, steps: int = 100, *, learning_rate: float = 1e-4, dtype: DTypeLike = jnp.float32
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    with precision(dtype):
        state, losses = scan(*start(problem, dtype=dtype), positive(steps), learning_rate)
        return Trajectory(losses, final_weights(state.weights))
