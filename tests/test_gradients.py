"""The ports' gradients, against the reference and against finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import compare
import jaxnet
from compare.notebook import reference
from compare.notebook.comparison import VARIANTS

CELLS = [variant for variant in VARIANTS if variant != "numpy"]


def problem_for(cell: str, seed: int) -> compare.Problem:
    return compare.draw(seed, biases=cell in ("module", "adam"))


def as_in_problem(cell: str, tree: Any) -> dict[str, np.ndarray]:
    """The port's gradients or weights under the problem's names, in its orientation."""
    if cell in ("module", "adam"):
        return {name: np.asarray(array) for name, array in jaxnet.module.final_weights(tree).items()}
    return {name: np.asarray(array).T for name, array in tree.items()}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(5))
def test_gradients_agree_with_the_reference(cell: str, seed: int) -> None:
    problem = problem_for(cell, seed)
    with jax.enable_x64(True):
        step = getattr(jaxnet, cell).step(*getattr(jaxnet, cell).start(problem, dtype=jnp.float64))
    expected = reference.step(*reference.start(problem), variant=reference.VARIANTS[cell])
    gradients = as_in_problem(cell, step.gradients)
    assert set(gradients) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        error = np.linalg.norm(gradients[name] - gradient) / np.linalg.norm(gradient)
        assert error <= 1e-12, name
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(as_in_problem(cell, step.state.weights)[name], weight, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("cell", ["autograd", "module"])
def test_losses_pass_finite_differences(cell: str) -> None:
    program = getattr(jaxnet, cell)
    problem = compare.draw(1, biases=cell == "module", shape=(6, 8, 5, 3))
    with jax.enable_x64(True):
        state, x, y = program.start(problem, dtype=jnp.float64)
        jax.test_util.check_grads(lambda w: program.loss_fn(w, x, y), (state.weights,), order=1, modes=["rev"])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_steps_are_the_derivative_of_their_loss(cell: str) -> None:
    """For the gradients by hand too: along a direction, the loss changes as the gradient says."""
    program = getattr(jaxnet, cell)
    with jax.enable_x64(True):
        state, x, y = program.start(
            compare.draw(2, biases=cell in ("module", "adam"), shape=(6, 8, 5, 3)), dtype=jnp.float64
        )
        gradients = program.step(state, x, y).gradients
        direction = jax.tree.map(lambda g: jnp.cos(jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape), gradients)
        h = 1e-6

        def loss_at(sign: int) -> jax.Array:
            moved = jax.tree.map(lambda w, d: w + sign * h * d, state.weights, direction)
            return program.step(state._replace(weights=moved), x, y).loss

        slope = (loss_at(1) - loss_at(-1)) / (2 * h)
        expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, direction)))
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_own_weights_have_the_distributions_of_the_notebook() -> None:
    normal = jaxnet.initial.standard_normal(jax.random.key(0))
    assert (normal.x.shape, normal.y.shape, normal.w1.shape, normal.w2.shape) == (
        (64, 1000),
        (64, 10),
        (1000, 100),
        (100, 10),
    )
    assert normal.b1 is None
    np.testing.assert_allclose([normal.w1.mean(), normal.w1.std()], [0, 1], atol=0.02)
    linear = jaxnet.initial.torch_linear(jax.random.key(0))
    import torch

    theirs = torch.nn.Linear(1000, 100)
    assert linear.b1 is not None
    for ours, parameter in ((linear.w1, theirs.weight), (linear.b1, theirs.bias)):
        assert abs(ours).max() <= 1000**-0.5
        np.testing.assert_allclose(ours.std(), parameter.std().item(), rtol=0.25)
    losses = jaxnet.adam.train(linear, steps=5).losses
    assert losses[-1] < losses[0]
