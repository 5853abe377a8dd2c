"""Cell 5 of the notebook in JAX: a model from flax.nnx, updated by optax.adam."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxnet.module import final_weights, loss_fn, network
from jaxnet.trajectory import Problem, State, Step, Trajectory, arrays, positive, precision

adam = optax.adam(learning_rate=1e-4)
"""The notebook's optimizer."""


def start(
    problem: Problem, *, optimizer: optax.GradientTransformation = adam, dtype: DTypeLike = jnp.float32
) -> tuple[State, jax.Array, jax.Array]:
    """Return the arguments of `step`: the model and its optimizer's state, and `x` and `y`."""
    model = network(problem, dtype=dtype)
    return State(model, jax.jit(optimizer.init)(model)), *arrays(problem, dtype)


@partial(jax.jit, static_argnames="optimizer")
def step(state: State, x: jax.Array, y: jax.Array, optimizer: optax.GradientTransformation = adam) -> Step:
    """One step of the optimizer."""
    # Backward pass: compute gradient of the loss with respect to model parameters
    loss, gradients = jax.value_and_grad(loss_fn)(state.weights, x, y)

    # The optimizer turns gradients into updates, and its own state into the next
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    return Step(loss, gradients, State(weights, optimizer_state))


@partial(jax.jit, static_argnames=("steps", "optimizer"))
def scan(
    state: State,
    x: jax.Array,
    y: jax.Array,
    steps: int,
    optimizer: optax.GradientTransformation = adam,
) -> tuple[State, jax.Array]:
    """Run a whole trajectory as one compiled program: the final state, and the losses of shape `(steps,)`."""

    def body(state: State, _: None) -> tuple[State, jax.Array]:
        loss, _gradients, state = step(state, x, y, optimizer)
        return state, loss

    return jax.lax.scan(body, state, length=steps)


def train(
    problem: Problem,
    steps: int = 100,
    *,
    optimizer: optax.GradientTransformation = adam,
    dtype: DTypeLike = jnp.float32,
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    with precision(dtype):
        state, losses = scan(*start(problem, optimizer=optimizer, dtype=dtype), positive(steps), optimizer)
        return Trajectory(losses, final_weights(state.weights))
